# Written by Drover for VmMigration team-a/uefi uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:cfe0812a6fb28960f39df5a4f40e1442d07992f88bd9a244255d05fea78264d1

resource "nutanix_virtual_machine_v2" "mail01" {
  name                 = "mail01"
  description          = "Moved by Drover from libvirt domain mail01 (5d2d1c1a-0000-4000-8000-000000000002) for VmMigration team-a/uefi uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 4
  num_cores_per_socket = 1
  num_threads_per_core = 1
  memory_size_bytes    = 4294967296
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

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 1
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 3222274048

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:02:01"
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
