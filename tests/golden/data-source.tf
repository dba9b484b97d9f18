# Written by Drover for VmMigration team-a/data-source uid 0b5e7c1e-0000-4000-8000-000000000001. Edit it after the migration is finalised, not before.
# Content sha256:0f7d15ad557d845282ea7efa668ffc1c94a2be8774f52e5c83c50275d1f484d9

data "nutanix_clusters_v2" "shop01" {
  filter = "name eq 'ahv1'"
}

data "nutanix_storage_containers_v2" "shop01" {
  filter = "name eq 'default-container' and clusterExtId eq '${one(data.nutanix_clusters_v2.shop01.cluster_entities).ext_id}'"
}

data "nutanix_subnets_v2" "shop01_vlan10" {
  filter = "name eq 'vlan10' and clusterReference eq '${one(data.nutanix_clusters_v2.shop01.cluster_entities).ext_id}'"
}

data "nutanix_subnets_v2" "shop01_vlan30" {
  filter = "name eq 'it''s the \"dmz\" \u0024{x} \u0025{y}' and clusterReference eq '${one(data.nutanix_clusters_v2.shop01.cluster_entities).ext_id}'"
}

data "nutanix_categories_v2" "shop01_AppType_it_s__quoted____x____y____80af589f" {
  filter = "key eq 'AppType' and value eq 'it''s \"quoted\" \u0024{x} \u0025{y} \\'"
}

data "nutanix_categories_v2" "shop01_Environment_Production_202fcf23" {
  filter = "key eq 'Environment' and value eq 'Production'"
}

data "nutanix_categories_v2" "shop01_Environment_Test_3c44493b" {
  filter = "key eq 'Environment' and value eq 'Test'"
}

resource "nutanix_virtual_machine_v2" "shop01" {
  name                 = "shop01"
  description          = "Moved by Drover from libvirt domain shop01 (5d2d1c1a-0000-4000-8000-000000000010) for VmMigration team-a/data-source uid 0b5e7c1e-0000-4000-8000-000000000001"
  num_sockets          = 2
  num_cores_per_socket = 1
  num_threads_per_core = 1
  memory_size_bytes    = 4294967296
  machine_type         = "PC"
  power_state          = "OFF"

  cluster {
    ext_id = one(data.nutanix_clusters_v2.shop01.cluster_entities).ext_id
  }

  categories {
    ext_id = one(data.nutanix_categories_v2.shop01_AppType_it_s__quoted____x____y____80af589f.categories).ext_id
  }

  categories {
    ext_id = one(data.nutanix_categories_v2.shop01_Environment_Production_202fcf23.categories).ext_id
  }

  categories {
    ext_id = one(data.nutanix_categories_v2.shop01_Environment_Test_3c44493b.categories).ext_id
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
          ext_id = one(data.nutanix_storage_containers_v2.shop01.storage_containers).container_ext_id
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
          ext_id = one(data.nutanix_storage_containers_v2.shop01.storage_containers).container_ext_id
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:0a:01"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = one(data.nutanix_subnets_v2.shop01_vlan10.subnets).ext_id
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:0a:02"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = one(data.nutanix_subnets_v2.shop01_vlan30.subnets).ext_id
        }
      }
    }
  }

  nics {
    nic_backing_info {
      virtual_ethernet_nic {
        mac_address  = "52:54:00:00:0a:03"
        is_connected = true
      }
    }

    nic_network_info {
      virtual_ethernet_nic_network_info {
        nic_type  = "NORMAL_NIC"
        vlan_mode = "ACCESS"

        subnet {
          ext_id = one(data.nutanix_subnets_v2.shop01_vlan10.subnets).ext_id
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
