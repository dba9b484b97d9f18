package main

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
)

// listSource makes a data source that shows one page of a list in attribute `name`.
func listSource(name string, shape fields, list func(c *clients, q query) (any, error)) *schema.Resource {
	return &schema.Resource{
		Schema: fields{
			"page":   {Type: schema.TypeInt, Optional: true},
			"limit":  {Type: schema.TypeInt, Optional: true},
			"filter": {Type: schema.TypeString, Optional: true},
			name:     {Type: schema.TypeList, Computed: true, Elem: &schema.Resource{Schema: shape}},
		},
		ReadContext: func(_ context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
			found, err := list(meta.(*clients), queryOf(d))
			if err != nil {
				return diag.FromErr(fmt.Errorf("list %s: %w", name, readable(err)))
			}
			var entities []any
			if err := decodeInto(&entities, found); err != nil {
				return diag.FromErr(err)
			}
			d.SetId(name)
			return diag.FromErr(d.Set(name, flattenValue(name, &schema.Schema{Type: schema.TypeList, Elem: &schema.Resource{Schema: shape}}, entities)))
		},
	}
}

// query is what of a list is asked for; nil means that the parameter is not sent.
type query struct {
	page, limit *int
	filter      *string
}

func queryOf(d *schema.ResourceData) query {
	q := query{}
	if page, given := d.GetOk("page"); given {
		value := page.(int)
		q.page = &value
	}
	if limit, given := d.GetOk("limit"); given {
		value := limit.(int)
		q.limit = &value
	}
	if filter, given := d.GetOk("filter"); given {
		value := filter.(string)
		q.filter = &value
	}
	return q
}

func clustersDataSource() *schema.Resource {
	return listSource("cluster_entities", fields{"ext_id": textOut(), "name": textOut()}, func(c *clients, q query) (any, error) {
		answer, err := c.clusters.ListClusters(q.page, q.limit, q.filter, nil, nil, nil, nil)
		if err != nil {
			return nil, err
		}
		return answer.GetData(), nil
	})
}

func storageContainersDataSource() *schema.Resource {
	shape := fields{"container_ext_id": textOut(), "name": textOut(), "cluster_ext_id": textOut()}
	return listSource("storage_containers", shape, func(c *clients, q query) (any, error) {
		answer, err := c.containers.ListStorageContainers(q.page, q.limit, q.filter, nil, nil)
		if err != nil {
			return nil, err
		}
		return answer.GetData(), nil
	})
}

func subnetsDataSource() *schema.Resource {
	network := &schema.Schema{Type: schema.TypeInt, Computed: true}
	shape := fields{"ext_id": textOut(), "name": textOut(), "subnet_type": textOut(), "network_id": network}
	return listSource("subnets", shape, func(c *clients, q query) (any, error) {
		answer, err := c.subnets.ListSubnets(q.page, q.limit, q.filter, nil, nil, nil)
		if err != nil {
			return nil, err
		}
		return answer.GetData(), nil
	})
}

func categoriesDataSource() *schema.Resource {
	shape := fields{"ext_id": textOut(), "key": textOut(), "value": textOut(), "type": textOut(), "description": textOut(), "owner_uuid": textOut()}
	return listSource("categories", shape, func(c *clients, q query) (any, error) {
		answer, err := c.categories.ListCategories(q.page, q.limit, q.filter, nil, nil, nil)
		if err != nil {
			return nil, err
		}
		return answer.GetData(), nil
	})
}
