# Written by Drover for VmMigration team-a/digits uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:b9bb3aab5808d1d0578c895878b39aa77713c8de19e2dbb8831e2a71e43db247

resource "nutanix_virtual_machine_v2" "vm_01web_1c58af10" {
  name                 = "01web"
  description          = "Moved by Drover from libvirt domain 01web (5d2d1c1a-0000-4000-8000-000000000015) for VmMigration team-a/digits uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 2
  num_cores_per_socket = 1
  num_threads_per_core = 1
  memory_size_bytes    = 4294967296
  machine_type         = "PC"
  power_state          = "OFF"

  cluster {
    ext_id = "054c31a2-7f8d-4d17-8e08-196da95ef2b4"
  }

  boot_config {
    legacy_boot {
      boot_order = [
        "DISK"
      ]
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 0
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 2147483648

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [
      cd_roms,
      description,
      disks,
      guest_tools,
      power_state
    ]
    prevent_destroy = true
  }
}
