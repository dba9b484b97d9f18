"""Takes a simulated Prism through a VM's life with the vendor's own SDKs. Exit 0 = everything was as they expect it.

Environment: PRISM_PORT, PRISM_USERNAME, PRISM_PASSWORD, PRISM_CA (file), PRISM_CLUSTER, PRISM_CONTAINER, PRISM_SUBNET (names).
"""

import os
import time

import ntnx_clustermgmt_py_client as clustermgmt
import ntnx_networking_py_client as networking
import ntnx_prism_py_client as prism
import ntnx_vmm_py_client as vmm
import ntnx_vmm_py_client.models.vmm.v4.ahv.config as config
from ntnx_vmm_py_client.rest import ApiException

MIB = 1 << 20
SIZES = {0: 64 * MIB, 1: 32 * MIB}
MAC = "52:54:00:12:34:56"


def client(package):
    settings = package.Configuration()
    settings.host = "127.0.0.1"
    settings.port = int(os.environ["PRISM_PORT"])
    settings.username = os.environ["PRISM_USERNAME"]
    settings.password = os.environ["PRISM_PASSWORD"]
    settings.verify_ssl = True
    settings.root_ca_certificate_file = os.environ["PRISM_CA"]
    settings.max_retry_attempts = 0
    return package.ApiClient(configuration=settings)


VMS = vmm.VmApi(api_client=client(vmm))
TASKS = prism.TasksApi(api_client=client(prism))


def check(good, what):
    if not good:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def done(reference):
    """Polls a task to its end; every state it passed through."""
    seen = []
    for _ in range(200):
        task = TASKS.get_task_by_id(reference.data.ext_id).data
        if not seen or seen[-1] != task.status:
            seen.append(task.status)
        if task.status in ("SUCCEEDED", "FAILED"):
            print(f"task {task.operation}: {task.status} {[error.message for error in task.error_messages or []]}")
            return task, seen
        time.sleep(0.02)
    raise SystemExit(f"FAILED: task {reference.data.ext_id} did not end, saw {seen}")


def named(answer, name):
    check([one.name for one in answer.data] == [name], f"the filter finds {name} alone")
    return answer.data[0]


def wanted_vm():
    management = client(clustermgmt)
    filters = {key: f"name eq '{os.environ[key]}'" for key in ("PRISM_CLUSTER", "PRISM_CONTAINER", "PRISM_SUBNET")}
    cluster = named(
        clustermgmt.ClustersApi(api_client=management).list_clusters(_filter=filters["PRISM_CLUSTER"]),
        os.environ["PRISM_CLUSTER"],
    )
    container = named(
        clustermgmt.StorageContainersApi(api_client=management).list_storage_containers(
            _filter=filters["PRISM_CONTAINER"]
        ),
        os.environ["PRISM_CONTAINER"],
    )
    subnet = named(
        networking.SubnetsApi(api_client=client(networking)).list_subnets(_filter=filters["PRISM_SUBNET"]),
        os.environ["PRISM_SUBNET"],
    )
    disks = [
        config.Disk.Disk(
            disk_address=config.DiskAddress.DiskAddress(bus_type="SCSI", index=index),
            backing_info=config.VmDisk.VmDisk(
                disk_size_bytes=size,
                storage_container=config.VmDiskContainerReference.VmDiskContainerReference(
                    ext_id=container.container_ext_id
                ),
            ),
        )
        for index, size in SIZES.items()
    ]
    nic = config.Nic.Nic(
        nic_backing_info=config.VirtualEthernetNic.VirtualEthernetNic(mac_address=MAC, is_connected=True),
        nic_network_info=config.VirtualEthernetNicNetworkInfo.VirtualEthernetNicNetworkInfo(
            nic_type="NORMAL_NIC", subnet=config.SubnetReference.SubnetReference(ext_id=subnet.ext_id)
        ),
    )
    return config.Vm.Vm(
        name="sdk-vm",
        num_sockets=2,
        memory_size_bytes=512 * MIB,
        cluster=config.ClusterReference.ClusterReference(ext_id=cluster.ext_id),
        boot_config=config.UefiBoot.UefiBoot(boot_order=["DISK"]),
        disks=disks,
        nics=[nic],
    )


def create():
    check(VMS.list_vms(_filter="name eq 'sdk-vm'").data is None, "an empty list has no data")
    task, seen = done(VMS.create_vm(wanted_vm()))
    check(seen == ["QUEUED", "RUNNING", "SUCCEEDED"], f"the task passed through {seen}")
    entity = task.entities_affected[0]
    check(entity.rel == "vmm:ahv:config:vm", "the task names the VM it made")
    listed = VMS.list_vms(_filter="name eq 'sdk-vm'")
    check([vm.ext_id for vm in listed.data] == [entity.ext_id], "the VM is found by name")
    check(listed.metadata.total_available_results == 1, "the list says how many there are")
    return entity.ext_id


def inspect(vm_id):
    answer = VMS.get_vm_by_id(vm_id)
    vm = answer.data
    check(isinstance(vm, config.Vm.Vm), "the answer is read as a Vm")
    check(bool(VMS.api_client.get_etag(answer)), "the answer has an ETag")
    check(vm.power_state == "OFF", "a new VM is off")
    check({disk.disk_address.index: disk.backing_info.disk_size_bytes for disk in vm.disks} == SIZES, "sizes by index")
    check(all(disk.ext_id == disk.backing_info.disk_ext_id for disk in vm.disks), "extId is the device's uuid")
    check(isinstance(vm.boot_config, config.UefiBoot.UefiBoot), "the boot config keeps its type")
    check(vm.nics[0].nic_backing_info.mac_address == MAC, "the MAC is as asked for")
    check(vm.nics[0].backing_info.mac_address == MAC, "the deprecated NIC field shows it too")


def etag(vm_id):
    return VMS.api_client.get_etag(VMS.get_vm_by_id(vm_id))


def power(vm_id, call, state):
    task, _ = done(call(vm_id, if_match=etag(vm_id)))
    check(task.status == "SUCCEEDED", f"the task to turn the VM {state} succeeds")
    check(VMS.get_vm_by_id(vm_id).data.power_state == state, f"the VM is {state}")


def describe(vm_id):
    before = VMS.get_vm_by_id(vm_id)
    stale = VMS.api_client.get_etag(before)
    body = before.data
    body.description = "written by the SDK"
    task, _ = done(VMS.update_vm_by_id(vm_id, body, if_match=stale))
    check(task.status == "SUCCEEDED", "the description is updated")
    check(VMS.get_vm_by_id(vm_id).data.description == "written by the SDK", "and reads back")
    try:
        VMS.power_off_vm(vm_id, if_match=stale)
    except ApiException as refusal:
        check(refusal.status == 412 and "VMM-30303" in refusal.body, "a stale ETag is refused with 412")
    else:
        raise SystemExit("FAILED: a stale ETag was accepted")


def fail(vm_id):
    task, _ = done(VMS.power_on_vm(vm_id, if_match=etag(vm_id)))
    check(task.status == "FAILED" and "is on" in task.error_messages[0].message, "a failed task says why")


def remove(vm_id):
    done(VMS.delete_vm_by_id(vm_id, if_match=etag(vm_id)))
    try:
        VMS.get_vm_by_id(vm_id)
    except ApiException as refusal:
        check(refusal.status == 404, "a deleted VM is 404")
    else:
        raise SystemExit("FAILED: the VM is still there")


def main():
    vm_id = create()
    inspect(vm_id)
    power(vm_id, VMS.power_on_vm, "ON")
    fail(vm_id)
    describe(vm_id)
    power(vm_id, VMS.power_off_vm, "OFF")
    remove(vm_id)


if __name__ == "__main__":
    main()
