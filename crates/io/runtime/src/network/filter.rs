//! The way by which rules reach the kernel: nf_tables, else the `iptables` program.

use super::family::Family;
use super::iptables::Iptables;
use super::nft::Nft;
use super::rules::Rules;
use std::io::ErrorKind;

/// Remembers by which way rules are told here, and whether somebody else changed rules since.
#[derive(Debug)]
pub(crate) struct Filter {
    way: Way,
    /// `None` when nothing was written yet, or others wrote at the same time.
    seen: Option<Seen>,
}

/// How the kernel's rules were when ours were known to be among them.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// The kernel's count of changes.
    generation: u32,
    /// What stood in our tables.
    fingerprint: u64,
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

    /// Makes our tables what is wanted.
    pub(crate) fn enforce(&mut self, wanted: &[Rules]) -> Result<(), String> {
        match &self.way {
            Way::Nft => match self.enforce_nft(wanted) {
                Ok(()) => Ok(()),
                // The kernel has nf_tables, but not every part that is needed.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                    self.way = fall_back(&error.to_string());
                    match &self.way {
                        Way::Iptables(iptables) => replace_all(iptables, wanted),
                        Way::Nft => Err(error.to_string()),
                        Way::Neither(why) => Err(why.clone()),
                    }
                }
                Err(error) => Err(format!("the kernel's nf_tables refuse: {error}")),
            },
            Way::Iptables(iptables) => replace_all(iptables, wanted),
            Way::Neither(why) => Err(why.clone()),
        }
    }

    /// There is no way to make a rule here, so there is none that could be in the way.
    pub(crate) fn is_powerless(&self) -> bool {
        match &self.way {
            Way::Neither(_) => true,
            Way::Nft | Way::Iptables(_) => false,
        }
    }

    /// Removes our table; one that is not there is no error.
    pub(crate) fn remove(&mut self, family: Family, table: &str) -> Result<(), String> {
        self.seen = None;
        match &self.way {
            Way::Nft => Nft::open()
                .and_then(|mut nft| nft.remove(family, table))
                .map_err(|error| format!("the kernel's nf_tables refuse: {error}")),
            Way::Iptables(iptables) => iptables.remove(family, table),
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

    /// Whether somebody else changed our rules, or may have. Changes that the `iptables` program made before nf_tables
    /// cannot be seen.
    pub(crate) fn is_disturbed(&mut self, table: &str) -> bool {
        match &self.way {
            Way::Nft => self.has_changed(table).unwrap_or(false),
            Way::Iptables(_) | Way::Neither(_) => false,
        }
    }

    fn has_changed(&mut self, table: &str) -> std::io::Result<bool> {
        let Some(seen) = &mut self.seen else {
            return Ok(true);
        };
        let mut nft = Nft::open()?;
        let generation = nft.generation()?;
        if seen.generation == generation {
            return Ok(false);
        }
        // Others may change their own rules all the time, and another runtime of this machine does so when we do.
        let changed = seen.fingerprint != nft.fingerprint(table)?;
        seen.generation = generation;
        Ok(changed)
    }

    fn enforce_nft(&mut self, wanted: &[Rules]) -> std::io::Result<()> {
        self.seen = None;
        let Some(table) = wanted.first().map(|rules| &rules.table) else {
            return Ok(());
        };
        let mut nft = Nft::open()?;
        let before = nft.generation()?;
        nft.replace(wanted)?;
        let fingerprint = nft.fingerprint(table)?;
        let generation = nft.generation()?;
        // One change is ours. Where there were more, what was seen may not be what we wrote.
        self.seen = (generation == before.wrapping_add(1)).then_some(Seen {
            generation,
            fingerprint,
        });
        Ok(())
    }
}

fn replace_all(iptables: &Iptables, wanted: &[Rules]) -> Result<(), String> {
    wanted.iter().try_for_each(|rules| iptables.replace(rules))
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
