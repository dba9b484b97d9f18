# Written by Drover for VmMigration team-a/long-name uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:17384f7ced6d58452f41eff68575744dcdc303fb8fc17dabcc0539c3b26a086c

data "nutanix_clusters_v2" "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262" {
  filter = "name eq 'ahv1'"
}

data "nutanix_storage_containers_v2" "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262" {
  filter = "name eq 'default-container' and clusterExtId eq '${one(data.nutanix_clusters_v2.a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262.cluster_entities).ext_id}'"
}

data "nutanix_subnets_v2" "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262_vlan10" {
  filter = "name eq 'vlan10' and clusterReference eq '${one(data.nutanix_clusters_v2.a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262.cluster_entities).ext_id}'"
}

resource "nutanix_virtual_machine_v2" "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262" {
  name                 = "a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000.example.com"
  description          = "Moved by Drover from libvirt domain a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000.example.com (5d2d1c1a-0000-4000-8000-000000000012) for VmMigration team-a/long-name uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 2
  num_cores_per_socket = 1
  num_threads_per_core = 1
  memory_size_bytes    = 4294967296
  machine_type         = "PC"
  power_state          = "OFF"

  cluster {
    ext_id = one(data.nutanix_clusters_v2.a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262.cluster_entities).ext_id
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
          ext_id = one(data.nutanix_storage_containers_v2.a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262.storage_containers).container_ext_id
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:0c:01"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = one(data.nutanix_subnets_v2.a-machine-of-a-client-with-a-name-as-long-as-prism-lets-it-be-000000_example_com_a9df9262_vlan10.subnets).ext_id
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
