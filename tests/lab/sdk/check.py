"""Takes a simulated Prism through a VM's life with the vendor's own SDKs. Exit 0 = everything was as they expect it.

Environment: PRISM_PORT, PRISM_USERNAME, PRISM_PASSWORD, PRISM_API_KEY, PRISM_CA (file), PRISM_CLUSTER, PRISM_CONTAINER,
PRISM_SUBNET (names).
"""

import os
import time
import uuid

import ntnx_clustermgmt_py_client as clustermgmt
import ntnx_clustermgmt_py_client.models.common.v1.config as addresses
import ntnx_networking_py_client as networking
import ntnx_prism_py_client as prism
import ntnx_prism_py_client.models.prism.v4.config as prism_config
import ntnx_vmm_py_client as vmm
import ntnx_vmm_py_client.models.vmm.v4.ahv.config as config
from ntnx_vmm_py_client.rest import ApiException

MIB = 1 << 20
SIZES = {0: 64 * MIB, 1: 32 * MIB}
MAC = "52:54:00:12:34:56"


def client(package, api_key=None):
    settings = package.Configuration()
    settings.host = "127.0.0.1"
    settings.port = int(os.environ["PRISM_PORT"])
    if api_key:
        settings.set_api_key(api_key)
    else:
        settings.username = os.environ["PRISM_USERNAME"]
        settings.password = os.environ["PRISM_PASSWORD"]
    settings.verify_ssl = True
    settings.root_ca_certificate_file = os.environ["PRISM_CA"]
    settings.max_retry_attempts = 0
    return package.ApiClient(configuration=settings)


VMS = vmm.VmApi(api_client=client(vmm))
TASKS = prism.TasksApi(api_client=client(prism))
CONTAINERS = clustermgmt.StorageContainersApi(api_client=client(clustermgmt))


def check(good, what):
    if not good:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def refused(status, call, what):
    """The call is refused with this status; its words."""
    try:
        call()
    except ApiException as refusal:
        check(refusal.status == status, f"{what} is refused with {status}")
        return refusal.body
    raise SystemExit(f"FAILED: {what} was accepted")


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


def succeeds(reference, what):
    task, _ = done(reference)
    check(task.status == "SUCCEEDED", what)
    return task


def fails(reference, words, what):
    task, _ = done(reference)
    check(task.status == "FAILED" and words in task.error_messages[0].message, what)


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
    words = refused(412, lambda: VMS.power_off_vm(vm_id, if_match=stale), "a stale ETag")
    check("VMM-30303" in words, "in the words that the Terraform provider looks for")


def fail(vm_id):
    fails(VMS.power_on_vm(vm_id, if_match=etag(vm_id)), "is on", "a failed task says why")


def same_disk(index, size, container):
    return config.Disk.Disk(
        disk_address=config.DiskAddress.DiskAddress(bus_type="SCSI", index=index),
        backing_info=config.VmDisk.VmDisk(
            disk_size_bytes=size,
            storage_container=config.VmDiskContainerReference.VmDiskContainerReference(ext_id=container),
        ),
    )


def disks(vm_id):
    container = VMS.get_vm_by_id(vm_id).data.disks[0].backing_info.storage_container.ext_id
    succeeds(VMS.create_disk(vm_id, same_disk(4, 8 * MIB, container), if_match=etag(vm_id)), "a disk is added")
    added = [disk for disk in VMS.list_disks_by_vm_id(vm_id).data if disk.disk_address.index == 4][0]
    shown = VMS.get_disk_by_id(vm_id, added.ext_id)
    tag = VMS.api_client.get_etag(shown)
    body = shown.data
    body.backing_info.disk_size_bytes = 16 * MIB
    succeeds(VMS.update_disk_by_id(vm_id, added.ext_id, body, if_match=tag), "and grows")
    shown = VMS.get_disk_by_id(vm_id, added.ext_id)
    check(shown.data.backing_info.disk_size_bytes == 16 * MIB, "to the size that was asked for")
    body = shown.data
    body.backing_info.disk_size_bytes = 4 * MIB
    tag = VMS.api_client.get_etag(shown)
    fails(VMS.update_disk_by_id(vm_id, added.ext_id, body, if_match=tag), "shrink", "but never shrinks")
    fails(
        VMS.create_disk(vm_id, same_disk(4, 8 * MIB, container), if_match=etag(vm_id)), "taken", "nor shares its address"
    )
    succeeds(VMS.delete_disk_by_id(vm_id, added.ext_id, if_match=etag(vm_id)), "it goes")


def nics(vm_id):
    shown = VMS.list_nics_by_vm_id(vm_id).data
    check(len(shown) == 1, "the VM has one NIC")
    nic = config.Nic.Nic(
        nic_backing_info=config.VirtualEthernetNic.VirtualEthernetNic(mac_address="52:54:00:12:34:57"),
        nic_network_info=shown[0].nic_network_info,
    )
    succeeds(VMS.create_nic(vm_id, nic, if_match=etag(vm_id)), "a NIC is added")
    added = [nic for nic in VMS.list_nics_by_vm_id(vm_id).data if nic.ext_id != shown[0].ext_id][0]
    answer = VMS.get_nic_by_id(vm_id, added.ext_id)
    body, tag = answer.data, VMS.api_client.get_etag(answer)
    body.nic_backing_info.is_connected = False
    succeeds(VMS.update_nic_by_id(vm_id, added.ext_id, body, if_match=tag), "is unplugged")
    now = VMS.get_nic_by_id(vm_id, added.ext_id).data
    check(now.nic_backing_info.is_connected is False, "and shown so")
    check(now.nic_backing_info.mac_address == "52:54:00:12:34:57", "with its address")
    succeeds(VMS.delete_nic_by_id(vm_id, added.ext_id, if_match=etag(vm_id)), "and goes")
    check(len(VMS.get_vm_by_id(vm_id).data.nics) == 1, "the first one stays")


def repeated(vm_id):
    tag, request = etag(vm_id), {"NTNX-Request-Id": str(uuid.uuid4())}
    first = VMS.power_on_vm(vm_id, if_match=tag, **request)
    again = VMS.power_on_vm(vm_id, if_match=tag, **request)
    check(first.data.ext_id == again.data.ext_id, "the same request id is the same task")
    succeeds(first, "which succeeds")
    check(VMS.power_on_vm(vm_id, if_match=tag, **request).data.ext_id == first.data.ext_id, "however late it comes again")
    refused(400, lambda: VMS.power_off_vm(vm_id, if_match=etag(vm_id), **request), "a request id used for something else")


def categories(vm_id):
    api = prism.CategoriesApi(api_client=TASKS.api_client)
    check(api.list_categories().data is None, "there are no categories yet")
    made = api.create_category(prism_config.Category.Category(key="Environment", value="Test"))
    found = api.list_categories(_filter="key eq 'Environment' and value eq 'Test'")
    check([one.ext_id for one in found.data] == [made.data.ext_id], "a category is found by key and value")
    wanted = config.AssociateVmCategoriesParams.AssociateVmCategoriesParams(
        categories=[config.CategoryReference.CategoryReference(ext_id=made.data.ext_id)]
    )
    succeeds(VMS.associate_categories(vm_id, wanted, if_match=etag(vm_id)), "the VM gets it")
    check([one.ext_id for one in VMS.get_vm_by_id(vm_id).data.categories] == [made.data.ext_id], "and shows it")


def guest_tools(vm_id):
    answer = VMS.get_guest_tools_by_id(vm_id)
    check(isinstance(answer.data, config.GuestTools.GuestTools), "the answer is read as GuestTools")
    check(not answer.data.is_installed and not answer.data.is_iso_inserted, "a VM has none at first")
    insert = config.GuestToolsInsertConfig.GuestToolsInsertConfig(capabilities=["SELF_SERVICE_RESTORE"])
    tag = VMS.api_client.get_etag(answer)
    succeeds(VMS.insert_vm_guest_tools(vm_id, insert, if_match=tag), "their CD-ROM is inserted")
    check([one.iso_type for one in VMS.get_vm_by_id(vm_id).data.cd_roms] == ["GUEST_TOOLS"], "and shown")
    refused(412, lambda: VMS.insert_vm_guest_tools(vm_id, insert, if_match=tag), "a stale ETag")
    install = config.GuestToolsInstallConfig.GuestToolsInstallConfig(
        capabilities=["SELF_SERVICE_RESTORE"],
        credential=config.Credential.Credential(username="root", password="guest"),
        reboot_preference=config.RebootPreference.RebootPreference(schedule_type="SKIP"),
    )
    tag = VMS.api_client.get_etag(VMS.get_guest_tools_by_id(vm_id))
    succeeds(VMS.install_vm_guest_tools(vm_id, install, if_match=tag), "they are installed")
    check(VMS.get_guest_tools_by_id(vm_id).data.is_installed, "and shown so")


def whitelist():
    container = CONTAINERS.list_storage_containers().data[0]
    answer = CONTAINERS.get_storage_container_by_id(container.container_ext_id)
    body, tag = answer.data, CONTAINERS.api_client.get_etag(answer)
    check(body.is_nfs_whitelist_inherited, "the container inherits its list at first")
    wanted = addresses.IPAddressOrFQDN.IPAddressOrFQDN(
        ipv4=addresses.IPv4Address.IPv4Address(value="192.0.2.7", prefix_length=32)
    )
    body.nfs_whitelist_address = [wanted]
    update = CONTAINERS.update_storage_container_by_id
    task = succeeds(update(container.container_ext_id, body, if_match=tag), "it gets a list of its own")
    check(task.entities_affected[0].ext_id == container.container_ext_id, "the task names the container")
    now = CONTAINERS.get_storage_container_by_id(container.container_ext_id).data
    check(not now.is_nfs_whitelist_inherited, "and inherits none any more")
    check([entry.ipv4.value for entry in now.nfs_whitelist_address] == ["192.0.2.7"], "the list is as asked for")
    try:
        update(container.container_ext_id, body, if_match=tag)
    except clustermgmt.rest.ApiException as refusal:
        check(refusal.status == 412, "a stale ETag is refused with 412")
    else:
        raise SystemExit("FAILED: a stale ETag was accepted")


def pages():
    wanted = {f"page-{number}" for number in range(5)}
    for name in sorted(wanted):
        body = wanted_vm()
        body.name, body.nics = name, None
        succeeds(VMS.create_vm(body), f"{name} is created")
    seen, sizes = [], []
    for page in range(3):
        answer = VMS.list_vms(_page=page, _limit=2, _filter="startswith(name, 'page-')")
        check(answer.metadata.total_available_results == 5, "every page tells the total")
        sizes.append(len(answer.data))
        seen += [vm.name for vm in answer.data]
    check(sizes == [2, 2, 1] and set(seen) == wanted and len(seen) == 5, "the pages hold each VM once")
    check(VMS.list_vms(_page=3, _limit=2, _filter="startswith(name, 'page-')").data is None, "there is no fourth")
    either = VMS.list_vms(_filter="name eq 'page-1' or name eq 'page-3'").data
    check({vm.name for vm in either} == {"page-1", "page-3"}, "a filter selects")
    refused(400, lambda: VMS.list_vms(_filter="name resembles 'x'"), "a filter that makes no sense")
    for name in sorted(wanted):
        vm_id = VMS.list_vms(_filter=f"name eq '{name}'").data[0].ext_id
        succeeds(VMS.delete_vm_by_id(vm_id, if_match=etag(vm_id)), f"{name} is deleted")


def api_key():
    keyed = vmm.VmApi(api_client=client(vmm, os.environ["PRISM_API_KEY"]))
    check(keyed.list_vms().metadata.total_available_results == 1, "an API key lets one in")
    stranger = vmm.VmApi(api_client=client(vmm, "another"))
    refused(401, stranger.list_vms, "another key")


def remove(vm_id):
    succeeds(VMS.delete_vm_by_id(vm_id, if_match=etag(vm_id)), "the VM is deleted")
    refused(404, lambda: VMS.get_vm_by_id(vm_id), "a deleted VM")


def main():
    vm_id = create()
    inspect(vm_id)
    disks(vm_id)
    power(vm_id, VMS.power_on_vm, "ON")
    fail(vm_id)
    describe(vm_id)
    nics(vm_id)
    guest_tools(vm_id)
    categories(vm_id)
    power(vm_id, VMS.power_off_vm, "OFF")
    repeated(vm_id)
    power(vm_id, VMS.power_off_vm, "OFF")
    api_key()
    remove(vm_id)
    pages()
    whitelist()


if __name__ == "__main__":
    main()
