//! What plug-ins say about a container's devices, as a runtime understands it.

use kedge_containers::{Device, Mount};
use kedge_grpc::device_plugin::ContainerAllocateResponse;
use kedge_pods::translate::Allocated;
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;

/// Puts the answers together. Where two plug-ins say something about one name or one path, the first is heard.
pub(super) fn merge(answers: &[Vec<u8>]) -> Result<Allocated, prost::DecodeError> {
    let mut all = Allocated::default();
    let mut names = BTreeSet::new();
    for answer in answers {
        let answer = ContainerAllocateResponse::decode(answer.as_slice())?;
        for (name, value) in answer.envs {
            if names.insert(name.clone()) {
                all.env.push((name, value));
            }
        }
        for device in answer.devices {
            let has = |known: &Device| known.container_path == Path::new(&device.container_path);
            if !all.devices.iter().any(has) {
                all.devices.push(Device {
                    host_path: device.host_path.into(),
                    container_path: device.container_path.into(),
                    permissions: device.permissions,
                });
            }
        }
        for mount in answer.mounts {
            let has = |known: &Mount| known.container_path == Path::new(&mount.container_path);
            if !all.mounts.iter().any(has) {
                all.mounts.push(Mount::bind(
                    mount.host_path,
                    mount.container_path,
                    mount.read_only,
                ));
            }
        }
        for (name, value) in answer.annotations {
            all.annotations.entry(name).or_insert(value);
        }
        for device in answer.cdi_devices {
            if !all.cdi_devices.contains(&device.name) {
                all.cdi_devices.push(device.name);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_grpc::device_plugin::CdiDevice;

    #[test]
    fn devices_by_name_reach_the_container_once() {
        let answer = |names: &[&str], key: &str| {
            let names = names.iter().map(|name| CdiDevice {
                name: (*name).to_owned(),
            });
            ContainerAllocateResponse {
                cdi_devices: names.collect(),
                annotations: [(key.to_owned(), "vendor.com/npu=0".to_owned())].into(),
                ..ContainerAllocateResponse::default()
            }
            .encode_to_vec()
        };
        let answers = [
            answer(&["vendor.com/gpu=1", "vendor.com/gpu=0"], "cdi.k8s.io/a"),
            answer(&["vendor.com/gpu=0", "other.com/tpu=x"], "cdi.k8s.io/b"),
        ];
        let merged = merge(&answers).unwrap();
        assert_eq!(
            merged.cdi_devices,
            ["vendor.com/gpu=1", "vendor.com/gpu=0", "other.com/tpu=x"]
        );
        let keys: Vec<_> = merged.annotations.keys().collect();
        assert_eq!(keys, ["cdi.k8s.io/a", "cdi.k8s.io/b"]);
    }
}
