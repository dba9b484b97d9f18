package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/resource"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/models/vmm/v4/ahv/config"
)

const (
	ipPollEvery = 5 * time.Second
	ipPollLimit = 5 * time.Minute
)

func vmResource() *schema.Resource {
	return &schema.Resource{
		SchemaVersion: 1,
		Description:   "A virtual machine on AHV. Stand-in of Drover's lab, not the vendor's provider.",
		Schema:        vmSchema(),
		CreateContext: createVM,
		ReadContext:   readVM,
		UpdateContext: updateVM,
		DeleteContext: deleteVM,
		Importer:      &schema.ResourceImporter{StateContext: schema.ImportStatePassthroughContext},
	}
}

func createVM(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
	c := meta.(*clients)
	// The server creates every VM off; power_state is a call of its own. Like the official provider, this looks once more at a VM that is to
	// be off, and powers it off if somebody has started it since.
	body := expand(vmSchema(), d.GetRawPlan(), "power_state")
	if err := decodeInto(config.NewVm(), body); err != nil {
		return diag.FromErr(err)
	}
	answer, err := c.vms.CreateVm(&config.Vm{UnknownFields_: body})
	task, err := c.await(ctx, fmt.Sprintf("create VM %q", d.Get("name")), answer, err, d.Timeout(schema.TimeoutCreate))
	if err != nil {
		return diag.FromErr(err)
	}
	id, err := c.createdVM(task)
	if err != nil {
		return diag.FromErr(err)
	}
	d.SetId(id)

	state := d.Get("power_state").(string)
	if state == "ON" || state == "OFF" {
		if err := c.setPower(ctx, id, state, d.Timeout(schema.TimeoutCreate)); err != nil {
			return diag.FromErr(err)
		}
	}
	if state == "ON" && len(d.Get("nics").([]any)) > 0 {
		c.awaitIP(ctx, id)
	}
	return readVM(ctx, d, meta)
}

// awaitIP gives a guest some minutes to get an address. A guest without one is no failure.
func (c *clients) awaitIP(ctx context.Context, id string) {
	wait := resource.StateChangeConf{
		Pending: []string{"waiting"}, Target: []string{"found"},
		Delay: ipPollEvery, MinTimeout: ipPollEvery, Timeout: ipPollLimit,
		Refresh: func() (any, string, error) {
			vm, _, err := c.getVM(id)
			if err != nil {
				return nil, "", err
			}
			for _, nic := range vm.Nics {
				if hasAddress(nic.NetworkInfo) {
					return vm, "found", nil
				}
			}
			return vm, "waiting", nil
		},
	}
	_, _ = wait.WaitForStateContext(ctx)
}

func hasAddress(info *config.NicNetworkInfo) bool {
	if info == nil {
		return false
	}
	learned := info.Ipv4Info != nil && len(info.Ipv4Info.LearnedIpAddresses) > 0
	assigned := info.Ipv4Config != nil && info.Ipv4Config.IpAddress != nil
	return learned || assigned
}

// readVM fails for a VM that is gone, as the real provider does: its state is then removed by hand.
func readVM(_ context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
	vm, _, err := meta.(*clients).getVM(d.Id())
	if err != nil {
		return diag.FromErr(err)
	}
	var data object
	if err := decodeInto(&data, vm); err != nil {
		return diag.FromErr(err)
	}
	flat := flatten(vmSchema(), data)
	for name := range vmSchema() {
		if err := d.Set(name, flat[name]); err != nil {
			return diag.FromErr(fmt.Errorf("keep %s of VM %s: %w", name, d.Id(), err))
		}
	}
	return nil
}

func deleteVM(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
	c, id := meta.(*clients), d.Id()
	match, err := c.ifMatch(id)
	if err != nil {
		return diag.FromErr(err)
	}
	answer, err := c.vms.DeleteVmById(&id, match)
	_, err = c.await(ctx, "delete VM "+id, answer, err, d.Timeout(schema.TimeoutDelete))
	return diag.FromErr(err)
}
