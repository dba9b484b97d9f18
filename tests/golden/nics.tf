# Written by Drover for VmMigration team-a/nics uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:e49406949b7de4dbcf98321b800387e7f97cb34a3bd77d1172dba4df248bca4e

resource "nutanix_virtual_machine_v2" "gw01" {
  name                 = "gw01"
  description          = "Moved by Drover from libvirt domain gw01 (5d2d1c1a-0000-4000-8000-000000000006) for VmMigration team-a/nics uid 0b5e7c1e-0000-4000-8000-000000000001"
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

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:06:01"
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

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:06:02"
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

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:06:0a"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = "dd6bba02-07b7-4164-a3de-bc8ccc8ba4e7"
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:06:04"
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

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:06:05"
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
