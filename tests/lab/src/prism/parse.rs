//! Reads the bodies that v4 clients send, as tolerant as the real one: SDKs add `$reserved`, `$unknownFields`, discriminators, nulls
//! and both the old and the new pair of NIC fields.

use serde_json::{Map, Value, json};

use super::model::{Category, DiskAddress, Nic, new_uuid};
use super::v4::Refusal;

/// Longest name of a VM.
const MAX_NAME_CHARS: usize = 80;

/// Fields of a VM that a client may set; what else a body has is dropped. Devices are read apart.
const WRITABLE: [&str; 28] = [
    "name",
    "description",
    "numSockets",
    "numCoresPerSocket",
    "numThreadsPerCore",
    "numNumaNodes",
    "memorySizeBytes",
    "isVcpuHardPinningEnabled",
    "isCpuPassthroughEnabled",
    "enabledCpuFeatures",
    "isMemoryOvercommitEnabled",
    "isGpuConsoleEnabled",
    "isCpuHotplugEnabled",
    "isScsiControllerEnabled",
    "generationUuid",
    "biosUuid",
    "categories",
    "project",
    "cluster",
    "guestTools",
    "hardwareClockTimezone",
    "isBrandingEnabled",
    "bootConfig",
    "isVgaConsoleEnabled",
    "machineType",
    "vtpmConfig",
    "isAgentVm",
    "protectionType",
];

/// Fields that hold one of several types, told apart by `$objectType`.
const ONE_OFS: [&str; 5] = ["bootConfig", "bootDevice", "backingInfo", "nicBackingInfo", "nicNetworkInfo"];

/// A VM as a client asks for it.
pub struct VmRequest {
    pub settings: Map<String, Value>,
    /// `None` if the body has no such list.
    pub disks: Option<Vec<DiskRequest>>,
    pub nics: Option<Vec<Nic>>,
    pub cd_roms: Vec<Value>,
}

/// A disk as a client asks for it.
#[derive(Clone, Debug)]
pub struct DiskRequest {
    pub ext_id: Option<String>,
    pub bus: Option<String>,
    pub index: Option<u32>,
    pub size_bytes: u64,
    pub container_uuid: String,
}

/// Reads the body of a create or an update.
pub fn vm(body: &[u8]) -> Result<VmRequest, Refusal> {
    let body = clean(object(body)?, false);
    let mut wrong = Vec::new();
    check_name(&body, &mut wrong);
    check_counts(&body, &mut wrong);
    if body.pointer("/cluster/extId").and_then(Value::as_str).is_none() {
        wrong.push(("cluster.extId".to_owned(), "is required".to_owned()));
    }
    if !wrong.is_empty() {
        return Err(Refusal::Schema(wrong));
    }
    let mut settings = defaults();
    for key in WRITABLE {
        if let Some(value) = body.get(key) {
            settings.insert(key.to_owned(), value.clone());
        }
    }
    settings.insert("bootConfig".to_owned(), boot_config(body.get("bootConfig"))?);
    Ok(VmRequest {
        settings,
        disks: list(&body, "disks").map(|disks| disks.iter().map(disk_of).collect()).transpose()?,
        nics: list(&body, "nics").map(|nics| nics.iter().map(nic_of).collect()).transpose()?,
        cd_roms: list(&body, "cdRoms").cloned().unwrap_or_default(),
    })
}

/// Reads the body of a NIC's create or update; without `uuid` it gets a new one.
pub fn nic(body: &[u8], uuid: Option<&str>) -> Result<Nic, Refusal> {
    let mut nic = nic_of(&clean(object(body)?, false))?;
    nic.uuid = uuid.map_or_else(new_uuid, str::to_owned);
    Ok(nic)
}

/// Reads the `extId`s of the categories in a body.
pub fn category_ids(body: &[u8]) -> Result<Vec<String>, Refusal> {
    let body = clean(object(body)?, false);
    let ids = list(&body, "categories").into_iter().flatten();
    let ids: Option<Vec<String>> = ids.map(|category| category["extId"].as_str().map(str::to_owned)).collect();
    ids.filter(|ids| !ids.is_empty()).ok_or_else(|| schema("categories.extId", "is required"))
}

/// Reads a category: a key and a value.
pub fn category(body: &[u8]) -> Result<Category, Refusal> {
    let body = clean(object(body)?, false);
    let text = |key: &str| {
        let text = body.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| schema(key, "is required"))
    };
    Ok(Category { uuid: new_uuid(), key: text("key")?.into(), value: text("value")?.into() })
}

/// Reads an order for guest tools: their capabilities, and for an installation the guest's account.
pub fn guest_tools(body: &[u8], install: bool) -> Result<Value, Refusal> {
    let body = clean(object(body)?, false);
    if install {
        for path in ["/credential/username", "/credential/password"] {
            if body.pointer(path).and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(schema(&path.trim_start_matches('/').replace('/', "."), "is required"));
            }
        }
    }
    Ok(body.get("capabilities").cloned().unwrap_or_else(|| json!([])))
}

/// Reads a storage container's update: its own list is all that can be changed here.
pub fn whitelist(body: &[u8], name: &str) -> Result<Vec<Value>, Refusal> {
    let body = clean(object(body)?, false);
    if body.get("name").and_then(Value::as_str).is_some_and(|given| given != name) {
        return Err(Refusal::NotSimulated("renaming a storage container".into()));
    }
    let mut entries = Vec::new();
    for entry in list(&body, "nfsWhitelistAddress").into_iter().flatten() {
        let address = entry.pointer("/ipv4/value").and_then(Value::as_str);
        let prefix = entry.pointer("/ipv4/prefixLength").map_or(Some(32), Value::as_u64);
        match (address.map(str::parse::<std::net::Ipv4Addr>), prefix) {
            (Some(Ok(address)), Some(prefix)) if prefix <= 32 => entries.push(network(&format!("{address}/{prefix}"))),
            _ => {
                return Err(schema(
                    "nfsWhitelistAddress",
                    "is no IPv4 address with a prefix (others are not simulated)",
                ));
            }
        }
    }
    Ok(entries)
}

/// An entry of a storage container's list.
pub fn network(text: &str) -> Value {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    json!({ "ipv4": { "value": address, "prefixLength": prefix.parse::<u8>().unwrap_or(32) } })
}

/// Reads the body of a disk's create or update.
pub fn disk(body: &[u8]) -> Result<DiskRequest, Refusal> {
    disk_of(&clean(object(body)?, false))
}

fn object(body: &[u8]) -> Result<Value, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
        Ok(_) => Err(Refusal::Invalid("the body is not a JSON object".into())),
        Err(error) => Err(Refusal::Invalid(format!("the body is not JSON: {error}"))),
    }
}

/// Drops nulls and every key that begins with `$`, which SDKs add at will, except the `$objectType` of a OneOf.
fn clean(value: Value, is_one_of: bool) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(key, value)| !value.is_null() && (!key.starts_with('$') || is_one_of && key == "$objectType"))
            .map(|(key, value)| {
                let cleaned = clean(value, ONE_OFS.contains(&key.as_str()));
                (key, cleaned)
            })
            .collect(),
        Value::Array(members) => members.into_iter().map(|member| clean(member, is_one_of)).collect(),
        plain => plain,
    }
}

fn list<'a>(body: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    body.get(key).and_then(Value::as_array)
}

fn check_name(body: &Value, wrong: &mut Vec<(String, String)>) {
    let chars = body.get("name").and_then(Value::as_str).map_or(0, |name| name.chars().count());
    if chars == 0 || chars > MAX_NAME_CHARS {
        wrong.push(("name".into(), format!("must have 1 to {MAX_NAME_CHARS} characters, has {chars}")));
    }
}

fn check_counts(body: &Value, wrong: &mut Vec<(String, String)>) {
    for key in ["numSockets", "numCoresPerSocket", "numThreadsPerCore"] {
        if body.get(key).is_some_and(|value| value.as_u64().is_none_or(|count| count == 0)) {
            wrong.push((key.into(), "must be a number of at least 1".into()));
        }
    }
    if body.get("memorySizeBytes").and_then(Value::as_u64).is_none_or(|bytes| bytes == 0) {
        wrong.push(("memorySizeBytes".into(), "must be a positive number".into()));
    }
}

fn defaults() -> Map<String, Value> {
    let values = json!({
        "numSockets": 1, "numCoresPerSocket": 1, "numThreadsPerCore": 1, "numNumaNodes": 0,
        "isVcpuHardPinningEnabled": false, "isCpuPassthroughEnabled": false, "isMemoryOvercommitEnabled": false,
        "isGpuConsoleEnabled": false, "isCpuHotplugEnabled": true, "isScsiControllerEnabled": true,
        "isBrandingEnabled": false, "isVgaConsoleEnabled": true, "isAgentVm": false,
        "hardwareClockTimezone": "UTC", "machineType": "PC", "protectionType": "UNPROTECTED",
        "vtpmConfig": { "isVtpmEnabled": false },
    });
    match values {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn boot_config(given: Option<&Value>) -> Result<Value, Refusal> {
    let Some(given) = given else {
        return Ok(json!({
            "$objectType": "vmm.v4.ahv.config.LegacyBoot", "bootOrder": ["CDROM", "DISK", "NETWORK"]
        }));
    };
    match given.get("$objectType").and_then(Value::as_str) {
        Some("vmm.v4.ahv.config.LegacyBoot" | "vmm.v4.ahv.config.UefiBoot") => Ok(given.clone()),
        other => Err(Refusal::Invalid(format!("bootConfig: $objectType is {other:?}, not LegacyBoot or UefiBoot"))),
    }
}

fn disk_of(body: &Value) -> Result<DiskRequest, Refusal> {
    let backing = body.get("backingInfo").ok_or_else(|| schema("disks.backingInfo", "is required"))?;
    if let Some(kind) = backing.get("$objectType").filter(|kind| *kind != "vmm.v4.ahv.config.VmDisk") {
        return Err(Refusal::NotSimulated(format!("a disk backed by {kind}")));
    }
    if backing.get("dataSource").is_some() {
        return Err(Refusal::NotSimulated("a disk with a data source".into()));
    }
    let size = backing.get("diskSizeBytes").and_then(Value::as_u64).filter(|bytes| *bytes > 0);
    let container = backing.pointer("/storageContainer/extId").and_then(Value::as_str);
    let index = body.pointer("/diskAddress/index").and_then(Value::as_u64);
    Ok(DiskRequest {
        ext_id: body.get("extId").and_then(Value::as_str).map(str::to_owned),
        bus: body.pointer("/diskAddress/busType").and_then(Value::as_str).map(str::to_owned),
        index: index.map(u32::try_from).transpose().map_err(|_| schema("diskAddress.index", "is too large"))?,
        size_bytes: size.ok_or_else(|| schema("backingInfo.diskSizeBytes", "must be positive"))?,
        container_uuid: container.ok_or_else(|| schema("storageContainer.extId", "is required"))?.to_owned(),
    })
}

fn schema(path: &str, message: &str) -> Refusal {
    Refusal::Schema(vec![(path.into(), message.into())])
}

/// The new pair of fields wins over the old one.
fn nic_of(body: &Value) -> Result<Nic, Refusal> {
    let backing = body.get("nicBackingInfo").or_else(|| body.get("backingInfo")).cloned().unwrap_or_default();
    let network = body.get("nicNetworkInfo").or_else(|| body.get("networkInfo")).cloned().unwrap_or_default();
    for (part, kind) in [(&backing, "VirtualEthernetNic"), (&network, "VirtualEthernetNicNetworkInfo")] {
        let given = part.get("$objectType").and_then(Value::as_str).unwrap_or_default();
        if given.starts_with("vmm.v4.ahv.config.Sriov") || given.starts_with("vmm.v4.ahv.config.DpOffload") {
            return Err(Refusal::NotSimulated(format!("{given} (only {kind})")));
        }
    }
    let text = |part: &Value, key: &str, default: &str| part.get(key).and_then(Value::as_str).unwrap_or(default).into();
    let subnet = network.pointer("/subnet/extId").and_then(Value::as_str);
    Ok(Nic {
        uuid: body.get("extId").and_then(Value::as_str).map_or_else(new_uuid, str::to_owned),
        mac: backing.get("macAddress").and_then(Value::as_str).map_or_else(new_mac, str::to_owned),
        model: text(&backing, "model", "VIRTIO"),
        is_connected: backing.get("isConnected").and_then(Value::as_bool).unwrap_or(true),
        nic_type: text(&network, "nicType", "NORMAL_NIC"),
        vlan_mode: text(&network, "vlanMode", "ACCESS"),
        subnet_uuid: subnet.ok_or_else(|| schema("nics.nicNetworkInfo.subnet.extId", "is required"))?.to_owned(),
        ipv4_config: network.get("ipv4Config").cloned(),
    })
}

/// A random address with the prefix that AHV gives out.
fn new_mac() -> String {
    let random = uuid::Uuid::new_v4();
    let [a, b, c, ..] = random.into_bytes();
    format!("50:6b:8d:{a:02x}:{b:02x}:{c:02x}")
}

/// Whether this bus exists and has room for that index.
pub fn check_address(address: &DiskAddress) -> Result<(), String> {
    match DiskAddress::bus_limit(&address.bus) {
        Some(limit) if address.index < limit => Ok(()),
        Some(limit) => Err(format!("{} takes {limit} devices: no index {}", address.bus, address.index)),
        None => Err(format!("{} is no bus of AHV", address.bus)),
    }
}
