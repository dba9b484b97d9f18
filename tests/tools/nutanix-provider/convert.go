package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/go-cty/cty"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
)

// Terraform's snake_case attributes and the API's camelCase JSON differ by three rules only, so one walk over the schema serves both ways:
// a block is a list of one except where the API has an array; where the API has a oneOf, the schema has a block per member, named
// here with its type; attributes that are computed only are never sent.
//
// The real provider fills the SDK's models field by field, so its requests hold no type marks but those of oneOf members, and no defaults.
// Requests here are as bare: decoding into a model would add both, so a model is used to check a request, not to write it.

var arrays = map[string]bool{
	"categories": true, "disks": true, "cd_roms": true, "nics": true,
	"secondary_ip_address_list": true, "learned_ip_addresses": true,
}

const ahvConfig = "vmm.v4.ahv.config."

var oneOfMembers = map[string]string{
	"legacy_boot":                       ahvConfig + "LegacyBoot",
	"uefi_boot":                         ahvConfig + "UefiBoot",
	"boot_device_disk":                  ahvConfig + "BootDeviceDisk",
	"boot_device_nic":                   ahvConfig + "BootDeviceNic",
	"vm_disk":                           ahvConfig + "VmDisk",
	"adfs_volume_group_reference":       ahvConfig + "ADSFVolumeGroupReference",
	"image_reference":                   ahvConfig + "ImageReference",
	"vm_disk_reference":                 ahvConfig + "VmDiskReference",
	"virtual_ethernet_nic":              ahvConfig + "VirtualEthernetNic",
	"virtual_ethernet_nic_network_info": ahvConfig + "VirtualEthernetNicNetworkInfo",
}

const objectType = "$objectType"

type object = map[string]any

// decodeInto fills an SDK model from JSON-shaped data, or the other way round.
func decodeInto(model any, data any) error {
	encoded, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode %T: %w", data, err)
	}
	if err := json.Unmarshal(encoded, model); err != nil {
		return fmt.Errorf("read %s as %T: %w", encoded, model, err)
	}
	return nil
}

// expand turns a planned object into the API's shape. Null and unknown values are left to the server.
func expand(f fields, planned cty.Value, skip ...string) object {
	out := object{}
	for name, s := range f {
		if (s.Computed && !s.Optional) || contains(skip, name) || !planned.Type().HasAttribute(name) {
			continue
		}
		value := expandValue(name, s, planned.GetAttr(name))
		if value == nil {
			continue
		}
		key := camel(name)
		out[key] = value
		if member, ok := value.(object); ok && strings.HasPrefix(name, "nic_") {
			out["$"+key+"ItemDiscriminator"] = member[objectType]
		}
	}
	return out
}

func expandValue(name string, s *schema.Schema, v cty.Value) any {
	if v.IsNull() || !v.IsKnown() {
		return nil
	}
	switch s.Type {
	case schema.TypeString:
		if v.AsString() == "" {
			return nil
		}
		return v.AsString()
	case schema.TypeBool:
		return v.True()
	case schema.TypeInt:
		whole, _ := v.AsBigFloat().Int64()
		return whole
	}

	var items []any
	for it := v.ElementIterator(); it.Next(); {
		_, element := it.Element()
		if nested, ok := s.Elem.(*schema.Resource); ok {
			if !element.IsNull() && element.IsKnown() {
				items = append(items, expandOneOf(expand(nested.Schema, element)))
			}
		} else if item := expandValue(name, s.Elem.(*schema.Schema), element); item != nil {
			items = append(items, item)
		}
	}
	if len(items) == 0 {
		return nil
	}
	if _, isBlock := s.Elem.(*schema.Resource); isBlock && !arrays[name] {
		return items[0]
	}
	return items
}

// expandOneOf replaces a block whose only content is a oneOf's member by that member, marked with its type.
func expandOneOf(block object) any {
	for name, typeName := range oneOfMembers {
		if member, ok := block[camel(name)].(object); ok {
			member[objectType] = typeName
			member["$reserved"] = object{"$fv": "v4.r2"}
			return member
		}
	}
	return block
}

// flatten turns the API's JSON into what Terraform keeps in its state.
func flatten(f fields, data object) object {
	out := object{}
	for name, s := range f {
		if value, ok := data[camel(name)]; ok && value != nil {
			out[name] = flattenValue(name, s, value)
		}
	}
	return out
}

func flattenValue(name string, s *schema.Schema, value any) any {
	switch s.Type {
	case schema.TypeString, schema.TypeBool:
		return value
	case schema.TypeInt:
		if n, ok := value.(float64); ok {
			return int(n)
		}
		return value
	}

	nested, isBlock := s.Elem.(*schema.Resource)
	items, isArray := value.([]any)
	if !isArray {
		items = []any{value}
	}
	out := make([]any, 0, len(items))
	for _, item := range items {
		if isBlock {
			out = append(out, flattenBlock(nested.Schema, item.(object)))
		} else {
			out = append(out, flattenValue(name, s.Elem.(*schema.Schema), item))
		}
	}
	return out
}

func flattenBlock(f fields, data object) object {
	for name, s := range f {
		if typeName, ok := oneOfMembers[name]; ok && data[objectType] == typeName {
			return object{name: flattenValue(name, s, data)}
		}
	}
	return flatten(f, data)
}

// camel turns ext_id into extId.
func camel(snake string) string {
	words := strings.Split(snake, "_")
	for i := 1; i < len(words); i++ {
		words[i] = strings.ToUpper(words[i][:1]) + words[i][1:]
	}
	return strings.Join(words, "")
}

func contains(list []string, name string) bool {
	for _, item := range list {
		if item == name {
			return true
		}
	}
	return false
}
