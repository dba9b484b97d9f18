//! The file of a machine, for the tests that run Terraform.

pub const GIB: u64 = 1 << 30;

/// A VM as Drover renders it, with disks of these sizes in GiB.
pub fn vm_file(name: &str, mac: &str, disks_gib: &[u64]) -> String {
    let disk = |(index, gib): (usize, &u64)| {
        format!(
            r#"
  disks {{
    disk_address {{
      bus_type = "SCSI"
      index    = {index}
    }}
    backing_info {{
      vm_disk {{
        disk_size_bytes = {}
        storage_container {{
          ext_id = data.nutanix_storage_containers_v2.{name}.storage_containers[0].container_ext_id
        }}
      }}
    }}
  }}
"#,
            gib * GIB
        )
    };
    let disks: String = disks_gib.iter().enumerate().map(disk).collect();
    format!(
        r#"
data "nutanix_clusters_v2" "{name}" {{
  filter = "name eq 'ahv1'"
}}
data "nutanix_storage_containers_v2" "{name}" {{
  filter = "name eq 'drover'"
}}
data "nutanix_subnets_v2" "{name}" {{
  filter = "name eq 'lan'"
}}

resource "nutanix_virtual_machine_v2" "{name}" {{
  name                 = "{name}"
  description          = "Moved by drover"
  num_sockets          = 2
  num_cores_per_socket = 1
  memory_size_bytes    = 536870912
  power_state          = "OFF"

  cluster {{
    ext_id = data.nutanix_clusters_v2.{name}.cluster_entities[0].ext_id
  }}

  boot_config {{
    legacy_boot {{
      boot_order = ["DISK"]
    }}
  }}
{disks}
  nics {{
    nic_backing_info {{
      virtual_ethernet_nic {{
        mac_address  = "{mac}"
        is_connected = true
      }}
    }}
    nic_network_info {{
      virtual_ethernet_nic_network_info {{
        nic_type = "NORMAL_NIC"
        subnet {{
          ext_id = data.nutanix_subnets_v2.{name}.subnets[0].ext_id
        }}
        vlan_mode = "ACCESS"
      }}
    }}
  }}

  lifecycle {{
    ignore_changes  = [power_state, cd_roms, guest_tools]
    prevent_destroy = true
  }}
}}
"#
    )
}
