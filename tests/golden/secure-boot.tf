# Written by Drover for VmMigration team-a/secure-boot uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:39c919f4e5ec044c46206b8f4391b3549def96c6802aeb712fae7bb54d389aa0

resource "nutanix_virtual_machine_v2" "win01" {
  name                 = "win01"
  description          = "Moved by Drover from libvirt domain win01 (5d2d1c1a-0000-4000-8000-000000000003) for VmMigration team-a/secure-boot uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 1
  num_cores_per_socket = 8
  num_threads_per_core = 1
  memory_size_bytes    = 17179869184
  machine_type         = "Q35"
  power_state          = "OFF"

  cluster {
    ext_id = "054c31a2-7f8d-4d17-8e08-196da95ef2b4"
  }

  boot_config {
    uefi_boot {
      is_secure_boot_enabled = true
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

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:03:01"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = "d0a7e56a-e63a-43d5-a99c-f2d450632c0f"
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
