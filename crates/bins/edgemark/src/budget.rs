//! What a run needs of the machine, computed before it begins: file descriptors, processes, local ports.

use std::fmt;

/// What a process holds besides one descriptor for each edge: pipes, the poller, log and volume files that are being
/// written.
pub const DESCRIPTORS_KEPT: u64 = 128;
/// Local ports that other programs of the machine may need at the same time.
pub const PORTS_KEPT: u64 = 1000;
/// More processes than this cannot be watched by a person any more, and no machine has the cores for them.
pub const PROCESSES_MAX: u32 = 64;

/// What the machine gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Descriptors that one process may hold.
    pub descriptors: u64,
    /// Local ports towards one address.
    pub ports: u64,
}

/// Why the machine cannot carry the run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    #[error(
        "{nodes} edges in {processes} {} need {needed} file descriptors in each, and a process of this machine may \
         hold {limit}: use --processes {enough}{}",
        process_word(*processes), or_raise(*limit)
    )]
    Descriptors {
        nodes: u32,
        processes: u32,
        needed: u64,
        limit: u64,
        enough: u32,
    },
    #[error(
        "a process of this machine may hold {limit} file descriptors and edgemark keeps {DESCRIPTORS_KEPT} for itself: \
         raise the limit with `ulimit -n`"
    )]
    NoDescriptors { limit: u64 },
    #[error(
        "{nodes} edges would need {needed} processes of {limit} file descriptors each, and edgemark starts at most \
         {PROCESSES_MAX}: raise the limit with `ulimit -n`"
    )]
    Processes { nodes: u32, needed: u32, limit: u64 },
    #[error(
        "{nodes} edges need as many local ports towards CloudCore, and this machine gives {ports} to one address \
         (net.ipv4.ip_local_port_range; {PORTS_KEPT} are kept for others): use fewer edges, or several machines"
    )]
    Ports { nodes: u32, ports: u64 },
    #[error(
        "CloudCore (pid {pid}) must hold {needed} file descriptors for {nodes} edges and its limit is {limit}: start it \
         with a higher `ulimit -n`, or use fewer edges"
    )]
    CloudCore {
        pid: u32,
        nodes: u32,
        needed: u64,
        limit: u64,
    },
}

fn process_word(processes: u32) -> &'static str {
    if processes == 1 { "process" } else { "processes" }
}

fn or_raise(limit: u64) -> impl fmt::Display {
    format!(", or raise the limit above {limit} with `ulimit -n`")
}

impl Machine {
    /// How many processes carry `nodes` edges: as few as can, or as many as were asked for if that is enough.
    pub fn processes(&self, nodes: u32, asked: Option<u32>) -> Result<u32, Shortage> {
        let places = self.descriptors.saturating_sub(DESCRIPTORS_KEPT);
        if places == 0 {
            return Err(Shortage::NoDescriptors {
                limit: self.descriptors,
            });
        }
        let enough = u32::try_from(u64::from(nodes).div_ceil(places))
            .unwrap_or(u32::MAX)
            .max(1);
        if enough > PROCESSES_MAX {
            return Err(Shortage::Processes {
                nodes,
                needed: enough,
                limit: self.descriptors,
            });
        }
        let processes = asked.unwrap_or(enough);
        if processes < enough {
            let needed = u64::from(nodes.div_ceil(processes.max(1))) + DESCRIPTORS_KEPT;
            return Err(Shortage::Descriptors {
                nodes,
                processes,
                needed,
                limit: self.descriptors,
                enough,
            });
        }
        Ok(processes)
    }

    /// Whether one address can be dialled this often at one time.
    pub fn check_ports(&self, nodes: u32) -> Result<(), Shortage> {
        let ports = self.ports.saturating_sub(PORTS_KEPT);
        if u64::from(nodes) > ports {
            return Err(Shortage::Ports { nodes, ports });
        }
        Ok(())
    }
}

/// Whether CloudCore may hold a connection of each edge.
pub fn check_cloudcore(pid: u32, nodes: u32, limit: u64) -> Result<(), Shortage> {
    let needed = u64::from(nodes) + DESCRIPTORS_KEPT;
    if needed > limit {
        return Err(Shortage::CloudCore {
            pid,
            nodes,
            needed,
            limit,
        });
    }
    Ok(())
}

/// Splits `nodes` over `processes` as evenly as can be: first number and count of each.
pub fn shares(first: u32, nodes: u32, processes: u32) -> Vec<(u32, u32)> {
    let processes = processes.max(1);
    let (each, more) = (nodes / processes, nodes % processes);
    let mut next = first;
    let mut shares = Vec::new();
    for process in 0..processes {
        let count = each + u32::from(process < more);
        if count > 0 {
            shares.push((next, count));
        }
        next += count;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const MACHINE: Machine = Machine {
        descriptors: 20_000,
        ports: 28_232,
    };

    #[test]
    fn as_few_processes_as_can_carry_the_edges() {
        let small = Machine {
            descriptors: 256,
            ..MACHINE
        };
        let table = [
            (MACHINE.processes(10_000, None), Ok(1)),
            (MACHINE.processes(19_872, None), Ok(1)),
            (MACHINE.processes(19_873, None), Ok(2)),
            (MACHINE.processes(1_000, Some(4)), Ok(4)),
            (small.processes(1_000, None), Ok(8)),
        ];
        for (seen, wanted) in table {
            assert_eq!(seen, wanted);
        }
    }

    #[test]
    fn what_is_missing_is_said_in_one_sentence_with_the_way_out() {
        let small = Machine {
            descriptors: 256,
            ..MACHINE
        };
        let none = Machine {
            descriptors: 100,
            ..MACHINE
        };
        let complaints = [
            small.processes(1_000, Some(2)).map(drop),
            MACHINE.processes(30_000, Some(1)).map(drop),
            small.processes(10_000, None).map(drop),
            none.processes(1, None).map(drop),
            MACHINE.check_ports(30_000),
            check_cloudcore(7, 11_000, 1024),
        ];
        let told: Vec<String> = complaints
            .into_iter()
            .map(|complaint| complaint.expect_err("it cannot be carried").to_string())
            .collect();
        expect![[r"
            1000 edges in 2 processes need 628 file descriptors in each, and a process of this machine may hold 256: use --processes 8, or raise the limit above 256 with `ulimit -n`
            30000 edges in 1 process need 30128 file descriptors in each, and a process of this machine may hold 20000: use --processes 2, or raise the limit above 20000 with `ulimit -n`
            10000 edges would need 79 processes of 256 file descriptors each, and edgemark starts at most 64: raise the limit with `ulimit -n`
            a process of this machine may hold 100 file descriptors and edgemark keeps 128 for itself: raise the limit with `ulimit -n`
            30000 edges need as many local ports towards CloudCore, and this machine gives 27232 to one address (net.ipv4.ip_local_port_range; 1000 are kept for others): use fewer edges, or several machines
            CloudCore (pid 7) must hold 11128 file descriptors for 11000 edges and its limit is 1024: start it with a higher `ulimit -n`, or use fewer edges"]]
        .assert_eq(&told.join("\n"));
        assert_eq!(check_cloudcore(7, 11_000, 20_000), Ok(()));
    }

    #[test]
    fn every_edge_belongs_to_one_process() {
        assert_eq!(shares(0, 10, 3), [(0, 4), (4, 3), (7, 3)]);
        assert_eq!(shares(1000, 2, 3), [(1000, 1), (1001, 1)]);
        assert_eq!(shares(0, 0, 2), []);
    }
}
