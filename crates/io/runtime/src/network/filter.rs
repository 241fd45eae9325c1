//! The way by which rules reach the kernel: nf_tables, else the `iptables` program.

use super::iptables::Iptables;
use super::nft::Nft;
use super::rules::Rules;
use std::io::ErrorKind;

/// Remembers by which way rules are told here, and whether somebody else changed rules since.
#[derive(Debug)]
pub(crate) struct Filter {
    way: Way,
    /// The kernel's number after our last change.
    seen: Option<u32>,
}

#[derive(Debug)]
enum Way {
    Nft,
    Iptables(Iptables),
    /// Neither works here, and why.
    Neither(String),
}

impl Filter {
    pub(crate) fn open() -> Self {
        let way = match Nft::open().and_then(|mut nft| nft.generation()) {
            Ok(_) => Way::Nft,
            Err(error) => fall_back(&error.to_string()),
        };
        Self { way, seen: None }
    }

    /// As on a kernel that can do nothing.
    #[cfg(test)]
    pub(crate) fn without(why: &str) -> Self {
        Self {
            way: Way::Neither(why.to_owned()),
            seen: None,
        }
    }

    /// Makes the rules of our table what is wanted.
    pub(crate) fn enforce(&mut self, rules: &Rules) -> Result<(), String> {
        match &self.way {
            Way::Nft => match self.enforce_nft(rules) {
                Ok(()) => Ok(()),
                // The kernel has nf_tables, but not every part that is needed.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                    self.way = fall_back(&error.to_string());
                    match &self.way {
                        Way::Iptables(iptables) => iptables.replace(rules),
                        Way::Nft => Err(error.to_string()),
                        Way::Neither(why) => Err(why.clone()),
                    }
                }
                Err(error) => Err(format!("the kernel's nf_tables refuse: {error}")),
            },
            Way::Iptables(iptables) => iptables.replace(rules),
            Way::Neither(why) => Err(why.clone()),
        }
    }

    /// Removes our table; one that is not there is no error.
    pub(crate) fn remove(&mut self, rules: &Rules) -> Result<(), String> {
        self.seen = None;
        match &self.way {
            Way::Nft => Nft::open()
                .and_then(|mut nft| nft.remove(&rules.table))
                .map_err(|error| format!("the kernel's nf_tables refuse: {error}")),
            Way::Iptables(iptables) => iptables.remove(rules),
            Way::Neither(_) => Ok(()),
        }
    }

    /// Who drops packets that this node would forward, where that can be seen.
    pub(crate) fn forbids_forwarding(&self) -> Option<String> {
        match &self.way {
            Way::Nft => {
                let asked = Nft::open().and_then(|mut nft| nft.forbids_forwarding());
                asked.ok().flatten()
            }
            Way::Iptables(_) | Way::Neither(_) => None,
        }
    }

    /// Whether any rule of the node was changed since our last change; then ours may be gone. Changes that the
    /// `iptables` program made before nf_tables cannot be seen.
    pub(crate) fn is_disturbed(&self) -> bool {
        match &self.way {
            Way::Nft => {
                let now = Nft::open().and_then(|mut nft| nft.generation());
                now.is_ok_and(|now| self.seen != Some(now))
            }
            Way::Iptables(_) | Way::Neither(_) => false,
        }
    }

    fn enforce_nft(&mut self, rules: &Rules) -> std::io::Result<()> {
        let mut nft = Nft::open()?;
        nft.replace(rules)?;
        self.seen = Some(nft.generation()?);
        Ok(())
    }
}

fn fall_back(why: &str) -> Way {
    match Iptables::find() {
        Some(iptables) => {
            tracing::info!(
                reason = why,
                "the rules of the pods' network are told by iptables"
            );
            Way::Iptables(iptables)
        }
        None => Way::Neither(format!(
            "the kernel lacks nf_tables with NAT ({why}), and there is no iptables program"
        )),
    }
}
