# Written by Drover for VmMigration team-a/eight-disks uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:8e41f0078db437e1781cda2e060e3be83b35cb6b31da400606a6a1b53976916a

resource "nutanix_virtual_machine_v2" "db01" {
  name                 = "db01"
  description          = "Moved by Drover from libvirt domain db01 (5d2d1c1a-0000-4000-8000-000000000004) for VmMigration team-a/eight-disks uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 4
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

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 2
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 4296015872

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 3
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 5369757696

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 4
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 6443499520

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 5
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 7517241344

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 6
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 8590983168

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  disks {
    disk_address {
      bus_type = "SCSI"
      index    = 7
    }

    backing_info {
      vm_disk {
        disk_size_bytes = 9664724992

        storage_container {
          ext_id = "91a142fc-77bc-4d9b-86c0-d5d1e7fc2e43"
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:04:01"
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
