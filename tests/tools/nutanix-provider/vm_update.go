package main

import (
	"context"
	"fmt"
	"reflect"

	"github.com/hashicorp/go-cty/cty"
	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/models/vmm/v4/ahv/config"
)

var (
	// coldFields can change on a VM only while it is off.
	coldFields = []string{"num_cores_per_socket", "num_threads_per_core", "cluster", "is_cpu_hotplug_enabled", "guest_tools", "boot_config", "cd_roms"}
	// putFields are changed by one PUT of the whole VM; lists of devices and the power state have calls of their own.
	putFields = []string{
		"name", "description", "num_sockets", "num_cores_per_socket", "num_threads_per_core", "memory_size_bytes",
		"is_cpu_hotplug_enabled", "generation_uuid", "bios_uuid", "cluster", "guest_tools", "hardware_clock_timezone",
		"boot_config", "machine_type", "vtpm_config",
	}
)

func updateVM(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
	u := vmUpdate{clients: meta.(*clients), d: d, id: d.Id()}
	for _, step := range []func(context.Context) error{
		u.powerOffIfCold, u.put, u.disks, u.nics, u.cdRoms, u.categories, u.powerOnIfCold, u.powerState,
	} {
		if err := step(ctx); err != nil {
			// What was applied before the failure is on the server: the state must say so, not what was planned.
			d.Partial(true)
			return diag.FromErr(err)
		}
	}
	return readVM(ctx, d, meta)
}

// vmUpdate is one change of one VM; its methods are the steps, in order.
type vmUpdate struct {
	*clients
	d  *schema.ResourceData
	id string
}

func (u vmUpdate) isCold() bool {
	decreased := func(name string) bool {
		before, after := u.d.GetChange(name)
		return after.(int) < before.(int)
	}
	hotplug := u.d.Get("is_cpu_hotplug_enabled").(bool)
	return u.d.HasChanges(coldFields...) || (!hotplug && u.d.HasChange("num_sockets")) ||
		decreased("memory_size_bytes") || decreased("num_sockets")
}

func (u vmUpdate) powerOffIfCold(ctx context.Context) error {
	if !u.isCold() {
		return nil
	}
	return u.setPower(ctx, u.id, "OFF", u.d.Timeout(schema.TimeoutUpdate))
}

func (u vmUpdate) powerOnIfCold(ctx context.Context) error {
	if !u.isCold() || u.d.Get("power_state") != "ON" {
		return nil
	}
	return u.setPower(ctx, u.id, "ON", u.d.Timeout(schema.TimeoutUpdate))
}

func (u vmUpdate) powerState(ctx context.Context) error {
	if !u.d.HasChange("power_state") {
		return nil
	}
	want := "OFF"
	if u.d.Get("power_state") == "ON" {
		want = "ON"
	}
	return u.setPower(ctx, u.id, want, u.d.Timeout(schema.TimeoutUpdate))
}

// put sends the VM as it was just read with the changed fields laid over it; the SDK makes If-Match from the ETag inside it.
func (u vmUpdate) put(ctx context.Context) error {
	vm, _, err := u.getVM(u.id)
	if err != nil {
		return err
	}
	changed := fields{}
	for _, name := range putFields {
		if u.d.HasChange(name) {
			changed[name] = vmSchema()[name]
		}
	}
	if len(changed) == 0 {
		return nil
	}
	var whole object
	if err := decodeInto(&whole, vm); err != nil {
		return err
	}
	planned := expand(changed, u.d.GetRawPlan())
	for name := range changed {
		delete(whole, camel(name))
	}
	for key, value := range planned {
		whole[key] = value
	}
	body := config.NewVm()
	if err := decodeInto(body, whole); err != nil {
		return err
	}
	answer, err := u.vms.UpdateVmById(&u.id, body)
	return u.finish(ctx, "change VM "+u.id, answer, err)
}

func (u vmUpdate) finish(ctx context.Context, what string, answer taskAnswer, err error) error {
	_, err = u.await(ctx, what, answer, err, u.d.Timeout(schema.TimeoutUpdate))
	return err
}

func (u vmUpdate) disks(ctx context.Context) error {
	return u.devices("disks", func(verb, id string, planned object) error {
		match, err := u.ifMatch(u.id)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s disk %s of VM %s", verb, id, u.id)
		if verb == "delete" {
			answer, err := u.vms.DeleteDiskById(&u.id, &id, match)
			return u.finish(ctx, what, answer, err)
		}
		if backing, ok := planned["backingInfo"].(object); ok && verb == "change" {
			delete(backing, "dataSource")
		}
		if err := decodeInto(config.NewDisk(), planned); err != nil {
			return err
		}
		body := &config.Disk{UnknownFields_: planned}
		if verb == "change" {
			answer, err := u.vms.UpdateDiskById(&u.id, &id, body, match)
			return u.finish(ctx, what, answer, err)
		}
		answer, err := u.vms.CreateDisk(&u.id, body, match)
		return u.finish(ctx, what, answer, err)
	})
}

func (u vmUpdate) nics(ctx context.Context) error {
	return u.devices("nics", func(verb, id string, planned object) error {
		match, err := u.ifMatch(u.id)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s NIC %s of VM %s", verb, id, u.id)
		if verb == "delete" {
			answer, err := u.vms.DeleteNicById(&u.id, &id, match)
			return u.finish(ctx, what, answer, err)
		}
		if err := decodeInto(config.NewNic(), planned); err != nil {
			return err
		}
		body := &config.Nic{UnknownFields_: planned}
		if verb == "change" {
			answer, err := u.vms.UpdateNicById(&u.id, &id, body, match)
			return u.finish(ctx, what, answer, err)
		}
		answer, err := u.vms.CreateNic(&u.id, body, match)
		return u.finish(ctx, what, answer, err)
	})
}

// cdRoms adds and removes drives; the API cannot change one.
func (u vmUpdate) cdRoms(ctx context.Context) error {
	return u.devices("cd_roms", func(verb, id string, planned object) error {
		if verb == "change" {
			return nil
		}
		match, err := u.ifMatch(u.id)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s CD-ROM %s of VM %s", verb, id, u.id)
		if verb == "delete" {
			answer, err := u.vms.DeleteCdRomById(&u.id, &id, match)
			return u.finish(ctx, what, answer, err)
		}
		if err := decodeInto(config.NewCdRom(), planned); err != nil {
			return err
		}
		body := &config.CdRom{UnknownFields_: planned}
		answer, err := u.vms.CreateCdRom(&u.id, body, match)
		return u.finish(ctx, what, answer, err)
	})
}

func (u vmUpdate) categories(ctx context.Context) error {
	if !u.d.HasChange("categories") {
		return nil
	}
	before, after := u.d.GetChange("categories")
	if gone := before.(*schema.Set).Difference(after.(*schema.Set)).List(); len(gone) > 0 {
		match, err := u.ifMatch(u.id)
		if err != nil {
			return err
		}
		body := config.NewDisassociateVmCategoriesParams()
		body.Categories = categoryReferences(gone)
		answer, err := u.vms.DisassociateCategories(&u.id, body, match)
		if err := u.finish(ctx, "take categories off VM "+u.id, answer, err); err != nil {
			return err
		}
	}
	if added := after.(*schema.Set).Difference(before.(*schema.Set)).List(); len(added) > 0 {
		match, err := u.ifMatch(u.id)
		if err != nil {
			return err
		}
		body := config.NewAssociateVmCategoriesParams()
		body.Categories = categoryReferences(added)
		answer, err := u.vms.AssociateCategories(&u.id, body, match)
		return u.finish(ctx, "put categories on VM "+u.id, answer, err)
	}
	return nil
}

func categoryReferences(elements []any) []config.CategoryReference {
	out := make([]config.CategoryReference, 0, len(elements))
	for _, element := range elements {
		id := element.(object)["ext_id"].(string)
		reference := config.NewCategoryReference()
		reference.ExtId = &id
		out = append(out, *reference)
	}
	return out
}

// devices compares a list of devices by ext_id and calls `apply` with delete, change and add, in this order.
func (u vmUpdate) devices(name string, apply func(verb, id string, planned object) error) error {
	if !u.d.HasChange(name) {
		return nil
	}
	before, after := u.d.GetChange(name)
	existing := map[string]any{}
	for _, device := range before.([]any) {
		existing[deviceID(device)] = device
	}
	kept := map[string]bool{}
	for _, device := range after.([]any) {
		kept[deviceID(device)] = true
	}
	for _, device := range before.([]any) {
		if id := deviceID(device); !kept[id] {
			if err := apply("delete", id, nil); err != nil {
				return err
			}
		}
	}
	shape := vmSchema()[name].Elem.(*schema.Resource).Schema
	for _, verb := range []string{"change", "add"} {
		for i, device := range after.([]any) {
			id := deviceID(device)
			old, exists := existing[id]
			if exists != (verb == "change") || (exists && reflect.DeepEqual(old, device)) {
				continue
			}
			planned := u.d.GetRawPlan().GetAttr(name).Index(cty.NumberIntVal(int64(i)))
			if err := apply(verb, id, expand(shape, planned)); err != nil {
				return err
			}
		}
	}
	return nil
}

func deviceID(device any) string {
	if fields, ok := device.(object); ok {
		id, _ := fields["ext_id"].(string)
		return id
	}
	return ""
}
