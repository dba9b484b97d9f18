package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/resource"
	clustermgmtclient "github.com/nutanix/ntnx-api-golang-clients/clustermgmt-go-client/v4/client"
	networkingclient "github.com/nutanix/ntnx-api-golang-clients/networking-go-client/v4/client"
	prismclient "github.com/nutanix/ntnx-api-golang-clients/prism-go-client/v4/client"
	prismconfig "github.com/nutanix/ntnx-api-golang-clients/prism-go-client/v4/models/prism/v4/config"
	vmmclient "github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/client"
	vmmtasks "github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/models/prism/v4/config"
	"github.com/nutanix/ntnx-api-golang-clients/vmm-go-client/v4/models/vmm/v4/ahv/config"
)

const vmEntity = "vmm:ahv:config:vm"

// getVM reads a VM; the answer as a whole carries the ETag.
func (c *clients) getVM(id string) (*config.Vm, *config.GetVmApiResponse, error) {
	answer, err := c.vms.GetVmById(&id)
	if err != nil {
		return nil, nil, fmt.Errorf("read VM %s: %w", id, readable(err))
	}
	if answer.Data == nil {
		return nil, nil, fmt.Errorf("read VM %s: the answer has no data", id)
	}
	vm, ok := answer.Data.GetValue().(config.Vm)
	if !ok {
		return nil, nil, fmt.Errorf("read VM %s: the answer holds %T instead of a VM", id, answer.Data.GetValue())
	}
	return &vm, answer, nil
}

// ifMatch reads the VM once more and returns the header that ties a change to exactly what was read.
func (c *clients) ifMatch(id string) (map[string]any, error) {
	_, answer, err := c.getVM(id)
	if err != nil {
		return nil, err
	}
	etag := c.vms.ApiClient.GetEtag(answer)
	return map[string]any{"If-Match": &etag}, nil
}

// taskAnswer is what every changing call of the SDK answers with; the answers' types differ, their JSON does not.
type taskAnswer interface{ GetData() any }

// await waits for the task that a changing call answered with, and returns its id. `err` is the call's own error.
func (c *clients) await(ctx context.Context, what string, answer taskAnswer, err error, limit time.Duration) (string, error) {
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, readable(err))
	}
	reference, ok := answer.GetData().(vmmtasks.TaskReference)
	if !ok || reference.ExtId == nil {
		return "", fmt.Errorf("%s: the answer names no task (it holds %T)", what, answer.GetData())
	}
	id := *reference.ExtId
	wait := resource.StateChangeConf{
		Pending: []string{"PENDING", "RUNNING", "QUEUED"},
		Target:  []string{"SUCCEEDED"},
		Timeout: limit,
		Refresh: func() (any, string, error) { return c.taskState(id) },
	}
	if _, err := wait.WaitForStateContext(ctx); err != nil {
		return "", fmt.Errorf("%s: task %s: %w", what, id, err)
	}
	return id, nil
}

func (c *clients) getTask(id string) (*prismconfig.Task, error) {
	answer, err := c.tasks.GetTaskById(&id, nil)
	if err != nil {
		return nil, fmt.Errorf("read task %s: %w", id, readable(err))
	}
	task, ok := answer.GetData().(prismconfig.Task)
	if !ok || task.Status == nil {
		return nil, fmt.Errorf("read task %s: the answer holds %T instead of a task with a status", id, answer.GetData())
	}
	return &task, nil
}

func (c *clients) taskState(id string) (any, string, error) {
	task, err := c.getTask(id)
	if err != nil {
		return nil, "", err
	}
	state := task.Status.GetName()
	if state != "FAILED" && state != "CANCELED" {
		return task, state, nil
	}
	messages := []string{}
	for _, message := range task.ErrorMessages {
		if message.Message != nil {
			messages = append(messages, *message.Message)
		}
	}
	return task, state, fmt.Errorf("%s: %s", state, strings.Join(messages, "; "))
}

// createdVM names the VM that a create task made.
func (c *clients) createdVM(taskID string) (string, error) {
	task, err := c.getTask(taskID)
	if err != nil {
		return "", err
	}
	for _, entity := range task.EntitiesAffected {
		if entity.Rel != nil && *entity.Rel == vmEntity && entity.ExtId != nil {
			return *entity.ExtId, nil
		}
	}
	return "", fmt.Errorf("task %s names no entity with rel %s", taskID, vmEntity)
}

// readable turns the SDKs' errors (the raw body of the answer) into one line.
func readable(err error) error {
	var status string
	var body []byte
	var vmm vmmclient.GenericOpenAPIError
	var prism prismclient.GenericOpenAPIError
	var clustermgmt clustermgmtclient.GenericOpenAPIError
	var networking networkingclient.GenericOpenAPIError
	switch {
	case errors.As(err, &vmm):
		status, body = vmm.Status, vmm.Body
	case errors.As(err, &prism):
		status, body = prism.Status, prism.Body
	case errors.As(err, &clustermgmt):
		status, body = clustermgmt.Status, clustermgmt.Body
	case errors.As(err, &networking):
		status, body = networking.Status, networking.Body
	default:
		return err
	}

	type message struct{ Message, Code string }
	var answer struct {
		Data struct{ Error json.RawMessage }
	}
	var list []message
	if json.Unmarshal(body, &answer) != nil || json.Unmarshal(answer.Data.Error, &list) != nil || len(list) == 0 {
		return fmt.Errorf("HTTP %s: %s", status, body)
	}
	parts := []string{}
	for _, m := range list {
		parts = append(parts, strings.TrimSpace(m.Code+" "+m.Message))
	}
	return fmt.Errorf("HTTP %s: %s", status, strings.Join(parts, "; "))
}
