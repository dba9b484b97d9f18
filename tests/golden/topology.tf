# Written by Drover for VmMigration team-a/topology uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:3e5b26ff36ffca4d8ecebfc8db669ce6b6c31513c575b6b22c4a4ce4db14415e

resource "nutanix_virtual_machine_v2" "app01" {
  name                 = "app01"
  description          = "Moved by Drover from libvirt domain app01 (5d2d1c1a-0000-4000-8000-000000000007) for VmMigration team-a/topology uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 2
  num_cores_per_socket = 16
  num_threads_per_core = 2
  memory_size_bytes    = 137438953472
  machine_type         = "Q35"
  power_state          = "OFF"

  cluster {
    ext_id = "054c31a2-7f8d-4d17-8e08-196da95ef2b4"
  }

  boot_config {
    uefi_boot {
      is_secure_boot_enabled = false
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
        mac_address  = "52:54:00:00:07:01"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = "bda0ae7c-7612-4028-b416-33627fdd3b9c"
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
