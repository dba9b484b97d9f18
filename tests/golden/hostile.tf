# Written by Drover for VmMigration team-a/hostile uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:bf88896c98fe33971394494b54bec5bb927cb49853bc67b53acf121434d2b102

resource "nutanix_virtual_machine_v2" "web-01_hostile_c004d9fd" {
  name                 = "web-01.hostile"
  description          = "Moved by Drover from libvirt domain web \"01\" \u0024{file(\"/etc/passwd\")} $\u0024{x} $$\u0024{y} \u0025{ if true }z\u0025{ endif } %\u0025{ \\ \\n 'or' <Zürich> 🦀 (5d2d1c1a-0000-4000-8000-000000000008) for VmMigration team-a/hostile uid 0b5e7c1e-0000-4000-8000-000000000001"
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
        mac_address  = "52:54:00:00:08:01"
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
