//! The file by which a restarted agent knows which container has which devices.
//!
//! It is the file of a kubelet, see [`crate::checkpoint`].

use super::book::{Held, PerNuma, Place};
use crate::checkpoint::{self, Error};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// A kubelet's name for it.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    pub(super) held: BTreeMap<Place, Held>,
    /// The devices of each resource by their ids.
    pub(super) registered: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ContainerName")]
    container_name: String,
    #[serde(rename = "ResourceName")]
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<BTreeMap<i64, Option<Vec<String>>>>,
    /// Base 64.
    #[serde(rename = "AllocResp")]
    alloc_resp: Option<String>,
}

/// Reads the file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<Content>, Error> {
    checkpoint::read(path, parse)
}

/// Replaces the file, so that a power cut leaves the old or the new one.
pub(super) fn write(path: &Path, content: &Content) -> Result<(), Error> {
    checkpoint::write(path, &print(content))
}

fn parse(text: &str) -> Result<Content, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    checkpoint::verify(file.checksum, &printed(&file.data)?)?;
    let mut content = Content::default();
    for entry in file.data.pod_device_entries.unwrap_or_default() {
        let answer = answer(&entry)?;
        let place = Place {
            uid: entry.pod_uid,
            container: entry.container_name,
            resource: entry.resource_name,
        };
        let devices: PerNuma = entry
            .device_ids
            .unwrap_or_default()
            .into_iter()
            .map(|(node, ids)| (node, ids.unwrap_or_default()))
            .collect();
        let answer = Some(answer);
        content.held.insert(place, Held { devices, answer });
    }
    for (resource, ids) in file.data.registered_devices.unwrap_or_default() {
        content.registered.insert(resource, ids.unwrap_or_default());
    }
    Ok(content)
}

fn print(content: &Content) -> String {
    let entry = |(place, held): (&Place, &Held)| Entry {
        pod_uid: place.uid.clone(),
        container_name: place.container.clone(),
        resource_name: place.resource.clone(),
        device_ids: Some(
            held.devices
                .iter()
                .map(|(node, ids)| (*node, Some(ids.clone())))
                .collect(),
        ),
        alloc_resp: Some(STANDARD.encode(held.answer.as_deref().unwrap_or_default())),
    };
    let registered = content.registered.iter();
    let data = Data {
        pod_device_entries: Some(content.held.iter().map(entry).collect()),
        registered_devices: Some(
            registered
                .map(|(name, ids)| (name.clone(), Some(ids.clone())))
                .collect(),
        ),
    };
    let printed = printed(&data).expect("what was just encoded can be decoded");
    let file = File {
        data,
        checksum: u64::from(checkpoint::checksum(&printed)),
    };
    serde_json::to_string(&file).expect("maps with plain keys can be printed")
}

fn answer(entry: &Entry) -> Result<Vec<u8>, String> {
    let text = entry.alloc_resp.as_deref().unwrap_or_default();
    STANDARD
        .decode(text)
        .map_err(|error| format!("AllocResp: {error}"))
}

/// As Go's printer with type names, sorted keys and no pointers writes it.
fn printed(data: &Data) -> Result<String, String> {
    let mut text =
        String::from("(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)");
    match &data.pod_device_entries {
        None => text.push_str("<nil>"),
        Some(entries) => {
            let rows: Result<Vec<String>, String> = entries.iter().map(printed_entry).collect();
            let _ = write!(text, "[{}]", rows?.join(" "));
        }
    }
    text.push_str(" RegisteredDevices:(map[string][]string)");
    text.push_str(&map(data.registered_devices.as_ref()));
    text.push('}');
    Ok(text)
}

fn printed_entry(entry: &Entry) -> Result<String, String> {
    let bytes = match &entry.alloc_resp {
        None => "<nil>".to_owned(),
        Some(_) => list(Some(&answer(entry)?)),
    };
    Ok(format!(
        "{{PodUID:(string){} ContainerName:(string){} ResourceName:(string){} DeviceIDs:(checkpoint.DevicesPerNUMA){} AllocResp:([]uint8){bytes}}}",
        entry.pod_uid,
        entry.container_name,
        entry.resource_name,
        map(entry.device_ids.as_ref()),
    ))
}

fn map<K: std::fmt::Display>(map: Option<&BTreeMap<K, Option<Vec<String>>>>) -> String {
    let Some(map) = map else {
        return "<nil>".to_owned();
    };
    let rows = map
        .iter()
        .map(|(key, ids)| format!("{key}:{}", list(ids.as_deref())));
    format!("map[{}]", rows.collect::<Vec<_>>().join(" "))
}

fn list<T: std::fmt::Display>(list: Option<&[T]>) -> String {
    let Some(list) = list else {
        return "<nil>".to_owned();
    };
    let rows: Vec<String> = list.iter().map(T::to_string).collect();
    format!("[{}]", rows.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by kubelets.
    const OFFICIAL: [&str; 2] = [
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"bf52b2cd-b611-4e79-86b1-280b283185c3","ContainerName":"check","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["tegra"]},"AllocResp":"Ch8KFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSBXRlZ3Jh"}],"RegisteredDevices":{"nvidia.com/gpu":["tegra"]}},"Checksum":3660592824}"#,
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"513cb897-0262-4868-826f-aa943ee45a38","ContainerName":"app","ResourceName":"nvidia.com/gpu","DeviceIDs":{"0":["GPU-77a702db-e37f-3a74-d46d-c5713f66058c"]},"AllocResp":"CkIKFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSKEdQVS03N2E3MDJkYi1lMzdmLTNhNzQtZDQ2ZC1jNTcxM2Y2NjA1OGMaJAoOL2Rldi9udmlkaWFjdGwSDi9kZXYvbnZpZGlhY3RsGgJydxomCg8vZGV2L252aWRpYS11dm0SDy9kZXYvbnZpZGlhLXV2bRoCcncaMgoVL2Rldi9udmlkaWEtdXZtLXRvb2xzEhUvZGV2L252aWRpYS11dm0tdG9vbHMaAnJ3Gi4KEy9kZXYvbnZpZGlhLW1vZGVzZXQSEy9kZXYvbnZpZGlhLW1vZGVzZXQaAnJ3GiAKDC9kZXYvbnZpZGlhMBIML2Rldi9udmlkaWEwGgJydw=="}],"RegisteredDevices":{"nvidia.com/gpu":["GPU-77a702db-e37f-3a74-d46d-c5713f66058c","GPU-9b341c59-f96b-ba85-c137-78c3652fea65","GPU-c1e9f249-b37b-81c2-a8d9-ba5ca0294841"]}},"Checksum":133412836}"#,
    ];

    #[test]
    fn what_a_kubelet_wrote_is_read_and_written_back() {
        for text in OFFICIAL {
            let content = parse(text).unwrap();
            assert_eq!(content.held.len(), 1);
            assert_eq!(print(&content), text);
        }
    }

    #[test]
    fn a_file_that_was_changed_is_refused() {
        let changed = OFFICIAL[0].replace("tegra", "tegrb");
        assert!(parse(&changed).unwrap_err().contains("3660592824"));
        assert!(parse("{").is_err());
        assert!(parse(r#"{"Data":{},"Checksum":1}"#).is_err());
    }

    #[test]
    fn a_file_is_replaced_and_read() {
        let path = std::env::temp_dir().join(format!("kedge-checkpoint-{}", std::process::id()));
        assert_eq!(read(&path).unwrap(), None);
        write(&path, &Content::default()).unwrap();
        let content = parse(OFFICIAL[1]).unwrap();
        write(&path, &content).unwrap();
        assert_eq!(read(&path).unwrap(), Some(content));
        std::fs::remove_file(&path).unwrap();
    }
}
