//! The network of its pods.

use crate::{Daemon, Make};
use anyhow::Result;
use serde_json::json;
use std::fs;

impl<M: Make> Daemon<M> {
    pub(crate) fn write_network(&self) -> Result<()> {
        let folder = self.directory.join("cni");
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(self.directory.join("ipam"))?;
        fs::write(
            folder.join("10-kedge.conflist"),
            serde_json::to_vec_pretty(&self.network())?,
        )?;
        Ok(())
    }

    /// A bridge of its own, without a way out and without rules in the machine's firewall.
    fn network(&self) -> serde_json::Value {
        let subnet = format!("10.{}.{}.0/24", 100 + self.number / 256 % 100, self.number % 256);
        json!({
            "cniVersion": "0.4.0",
            "name": self.network_name(),
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge(),
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.directory.join("ipam"),
                    "ranges": [[{ "subnet": subnet }]],
                },
            }],
        })
    }

    pub(crate) fn network_name(&self) -> String {
        format!("kedge-{}", self.number)
    }
}
