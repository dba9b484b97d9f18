package main

import (
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/validation"
)

// The shapes below have the names, types and the optional/computed/default marks of nutanix_virtual_machine_v2 2.4.2; attributes that
// a migration never sets are left out. What is optional but not computed plans its own removal when it appears on the server only.

type fields = map[string]*schema.Schema

func text() *schema.Schema {
	return &schema.Schema{Type: schema.TypeString, Optional: true, Computed: true}
}
func flag() *schema.Schema {
	return &schema.Schema{Type: schema.TypeBool, Optional: true, Computed: true}
}
func number() *schema.Schema {
	return &schema.Schema{Type: schema.TypeInt, Optional: true, Computed: true}
}
func textOut() *schema.Schema  { return &schema.Schema{Type: schema.TypeString, Computed: true} }
func flagOut() *schema.Schema  { return &schema.Schema{Type: schema.TypeBool, Computed: true} }
func extID() *schema.Schema    { return block(fields{"ext_id": text()}) }
func positive() *schema.Schema { return withCheck(number(), validation.IntAtLeast(1)) }

func numberOr(value int) *schema.Schema {
	return &schema.Schema{Type: schema.TypeInt, Optional: true, Default: value}
}

func oneOf(names ...string) *schema.Schema {
	return withCheck(text(), validation.StringInSlice(names, false))
}

func withCheck(s *schema.Schema, check schema.SchemaValidateFunc) *schema.Schema {
	s.ValidateFunc = check
	return s
}

func textList() *schema.Schema {
	return &schema.Schema{Type: schema.TypeList, Optional: true, Computed: true, Elem: &schema.Schema{Type: schema.TypeString}}
}

func block(f fields) *schema.Schema {
	return &schema.Schema{Type: schema.TypeList, Optional: true, Computed: true, Elem: &schema.Resource{Schema: f}}
}

// declared is a list whose only source is the configuration: what the server has beyond it is planned to go.
func declared(f fields) *schema.Schema {
	return &schema.Schema{Type: schema.TypeList, Optional: true, Elem: &schema.Resource{Schema: f}}
}

func vmSchema() fields {
	return fields{
		"ext_id":                  textOut(),
		"name":                    text(),
		"description":             text(),
		"num_sockets":             positive(),
		"num_cores_per_socket":    positive(),
		"num_threads_per_core":    positive(),
		"memory_size_bytes":       positive(),
		"is_cpu_hotplug_enabled":  flag(),
		"machine_type":            oneOf("PSERIES", "Q35", "PC"),
		"hardware_clock_timezone": text(),
		"bios_uuid":               text(),
		"generation_uuid":         text(),
		"cluster":                 extID(),
		"project":                 extID(),
		"categories":              categoriesSchema(),
		"vtpm_config":             block(fields{"is_vtpm_enabled": flag(), "version": textOut()}),
		"guest_tools":             guestToolsSchema(),
		"boot_config":             bootConfigSchema(),
		"power_state": {
			Type: schema.TypeString, Optional: true, Default: "ON",
			ValidateFunc: validation.StringInSlice([]string{"ON", "OFF", "PAUSED", "UNDETERMINED"}, false),
		},
		"disks":       disksSchema(),
		"cd_roms":     cdRomsSchema(),
		"nics":        nicsSchema(),
		"create_time": textOut(),
		"update_time": textOut(),
	}
}

func categoriesSchema() *schema.Schema {
	element := &schema.Resource{Schema: fields{"ext_id": text()}}
	return &schema.Schema{Type: schema.TypeSet, Optional: true, Computed: true, Elem: element, Set: schema.HashResource(element)}
}

func guestToolsSchema() *schema.Schema {
	return declared(fields{
		"is_enabled": flag(), "capabilities": textList(),
		"version": textOut(), "available_version": textOut(), "guest_os_version": textOut(),
		"is_installed": flagOut(), "is_iso_inserted": flagOut(), "is_reachable": flagOut(),
		"is_vss_snapshot_capable": flagOut(), "is_vm_mobility_drivers_installed": flagOut(),
	})
}

func diskAddressSchema(buses ...string) *schema.Schema {
	return block(fields{"bus_type": oneOf(buses...), "index": number()})
}

func bootDeviceSchema() *schema.Schema {
	return block(fields{
		"boot_device_disk": block(fields{"disk_address": diskAddressSchema("SCSI", "SPAPR", "PCI", "IDE", "SATA")}),
		"boot_device_nic":  block(fields{"mac_address": text()}),
	})
}

func bootConfigSchema() *schema.Schema {
	return block(fields{
		"legacy_boot": block(fields{"boot_device": bootDeviceSchema(), "boot_order": textList()}),
		"uefi_boot": block(fields{
			"is_secure_boot_enabled": flag(), "boot_device": bootDeviceSchema(), "boot_order": textList(),
			"nvram_device": block(fields{"backing_storage_info": block(vmDiskFields())}),
		}),
	})
}

func vmDiskFields() fields {
	return fields{
		"disk_ext_id":              textOut(),
		"disk_size_bytes":          number(),
		"storage_container":        extID(),
		"storage_config":           block(fields{"is_flash_mode_enabled": flag()}),
		"is_migration_in_progress": flagOut(),
		"data_source": block(fields{"reference": block(fields{
			"image_reference": block(fields{"image_ext_id": text()}),
			"vm_disk_reference": block(fields{
				"disk_ext_id": text(), "vm_reference": extID(),
				"disk_address": diskAddressSchema("SCSI", "SPAPR", "PCI", "IDE", "SATA"),
			}),
		})}),
	}
}

func disksSchema() *schema.Schema {
	return declared(fields{
		"ext_id":       text(),
		"disk_address": diskAddressSchema("SCSI", "SPAPR", "PCI", "IDE", "SATA"),
		"backing_info": block(fields{
			"vm_disk":                     block(vmDiskFields()),
			"adfs_volume_group_reference": block(fields{"volume_group_ext_id": text()}),
		}),
	})
}

func cdRomsSchema() *schema.Schema {
	return declared(fields{
		"ext_id":       text(),
		"disk_address": diskAddressSchema("IDE", "SATA"),
		"backing_info": block(vmDiskFields()),
		"iso_type":     oneOf("OTHER", "GUEST_TOOLS", "GUEST_CUSTOMIZATION"),
	})
}

func nicsSchema() *schema.Schema {
	address := func() fields { return fields{"value": text(), "prefix_length": numberOr(32)} }
	nic := func() fields {
		return fields{"model": text(), "mac_address": text(), "is_connected": flag(), "num_queues": numberOr(1)}
	}
	network := func() fields {
		return fields{
			"nic_type": text(), "subnet": extID(), "vlan_mode": text(),
			"trunked_vlans":             {Type: schema.TypeList, Optional: true, Computed: true, Elem: &schema.Schema{Type: schema.TypeInt}},
			"should_allow_unknown_macs": flag(),
			"ipv4_config": block(fields{
				"should_assign_ip": flag(), "ip_address": block(address()), "secondary_ip_address_list": block(address()),
			}),
			"ipv4_info": block(fields{"learned_ip_addresses": block(address())}),
		}
	}
	return declared(fields{
		"ext_id": text(),
		// The older pair of the API; the newer one below wins when both are given.
		"backing_info":     block(nic()),
		"network_info":     block(network()),
		"nic_backing_info": block(fields{"virtual_ethernet_nic": block(nic())}),
		"nic_network_info": block(fields{"virtual_ethernet_nic_network_info": block(network())}),
	})
}
