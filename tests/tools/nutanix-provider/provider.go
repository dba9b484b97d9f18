package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	clustermgmtapi "github.com/nutanix/ntnx-api-golang-clients/clustermgmt-go-client/v4/api"
	clustermgmtclient "github.com/nutanix/ntnx-api-golang-clients/clustermgmt-go-client/v4/client"
	networkingapi "github.com/nutanix/ntnx-api-golang-clients/networking-go-client/v4/api"
	networkingclient "github.com/nutanix/ntnx-api-golang-clients/networking-go-client/v4/client"
	prismapi "github.com/nutanix/ntnx-api-golang-clients/prism-go-client/v4/api"
	prismclient "github.com/nutanix/ntnx-api-golang-clients/prism-go-client/v4/client"
	vmmapi "github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/api"
	vmmclient "github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/client"
)

const defaultPort = 9440

// clients holds one SDK client per API namespace: each negotiates its API version with its first call.
type clients struct {
	vms        *vmmapi.VmApi
	tasks      *prismapi.TasksApi
	categories *prismapi.CategoriesApi
	clusters   *clustermgmtapi.ClustersApi
	containers *clustermgmtapi.StorageContainersApi
	subnets    *networkingapi.SubnetsApi
}

func newProvider() *schema.Provider {
	fromEnv := func(kind schema.ValueType, variable, description string) *schema.Schema {
		return &schema.Schema{
			Type: kind, Optional: true, Sensitive: variable == "NUTANIX_PASSWORD",
			DefaultFunc: schema.EnvDefaultFunc(variable, nil), Description: description,
		}
	}
	standIn := "Stand-in of Drover's lab, not the vendor's provider."
	return &schema.Provider{
		Schema: map[string]*schema.Schema{
			"username": fromEnv(schema.TypeString, "NUTANIX_USERNAME", standIn+" User of Prism Central."),
			"password": fromEnv(schema.TypeString, "NUTANIX_PASSWORD", standIn+" Password of that user."),
			"endpoint": fromEnv(schema.TypeString, "NUTANIX_ENDPOINT", standIn+" Host name or address of Prism Central."),
			"port":     fromEnv(schema.TypeString, "NUTANIX_PORT", standIn+" Port of Prism Central, 9440 unless given."),
			"insecure": fromEnv(schema.TypeBool, "NUTANIX_INSECURE", standIn+" Has no effect: as with the real provider, v4 calls never verify TLS."),
		},
		ResourcesMap: map[string]*schema.Resource{"nutanix_virtual_machine_v2": vmResource()},
		DataSourcesMap: map[string]*schema.Resource{
			"nutanix_clusters_v2":           clustersDataSource(),
			"nutanix_storage_containers_v2": storageContainersDataSource(),
			"nutanix_subnets_v2":            subnetsDataSource(),
			"nutanix_categories_v2":         categoriesDataSource(),
		},
		ConfigureContextFunc: configure,
	}
}

// configure makes the clients. It sends nothing: the real provider does not either.
func configure(_ context.Context, d *schema.ResourceData) (any, diag.Diagnostics) {
	endpoint, username, password := d.Get("endpoint").(string), d.Get("username").(string), d.Get("password").(string)
	if endpoint == "" || username == "" || password == "" {
		return nil, diag.Errorf("endpoint, username and password are all needed: " +
			"set them in the provider block or as NUTANIX_ENDPOINT, NUTANIX_USERNAME and NUTANIX_PASSWORD")
	}
	port, err := portOf(d.Get("port").(string))
	if err != nil {
		return nil, diag.FromErr(err)
	}

	// The four clients are different types with the same fields.
	vmm, prism := vmmclient.NewApiClient(), prismclient.NewApiClient()
	clustermgmt, networking := clustermgmtclient.NewApiClient(), networkingclient.NewApiClient()
	vmm.Host, vmm.Port, vmm.Username, vmm.Password, vmm.VerifySSL = endpoint, port, username, password, false
	prism.Host, prism.Port, prism.Username, prism.Password, prism.VerifySSL = endpoint, port, username, password, false
	clustermgmt.Host, clustermgmt.Port, clustermgmt.Username, clustermgmt.Password, clustermgmt.VerifySSL = endpoint, port, username, password, false
	networking.Host, networking.Port, networking.Username, networking.Password, networking.VerifySSL = endpoint, port, username, password, false

	return &clients{
		vms:        vmmapi.NewVmApi(vmm),
		tasks:      prismapi.NewTasksApi(prism),
		categories: prismapi.NewCategoriesApi(prism),
		clusters:   clustermgmtapi.NewClustersApi(clustermgmt),
		containers: clustermgmtapi.NewStorageContainersApi(clustermgmt),
		subnets:    networkingapi.NewSubnetsApi(networking),
	}, nil
}

func portOf(text string) (int, error) {
	if text == "" {
		return defaultPort, nil
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return 0, fmt.Errorf("port %q is not a port number: give 1 to 65535, or nothing for %d", text, defaultPort)
	}
	return port, nil
}
