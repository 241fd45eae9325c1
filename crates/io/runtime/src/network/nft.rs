//! Rules in the kernel's nf_tables, told over netlink: no program needs to be installed.
//!
//! A table of our own holds everything, and everything is replaced at once: afterwards the kernel has the wanted rules,
//! whatever it had before.

use super::family::{self, Cidr, Family};
use super::netlink::{FLAG_APPEND, FLAG_CREATE, Message, Peer, Socket, attribute};
use super::rules::{Chain, Match, Rule, Rules, Verdict};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;

/// Which part of netfilter is spoken to; the upper byte of a message's kind.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const GET_GENERATION: u16 = 16;

const FAMILY_NONE: u8 = 0;
/// Of both kinds of addresses.
const FAMILY_INTERNET: u8 = 1;
/// What begins every message, before its attributes.
const BODY_BYTES: usize = 4;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const GENERATION_ID: u16 = 1;

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

const META_IN_INTERFACE: u32 = 6;
const META_OUT_INTERFACE: u32 = 7;
const META_PROTOCOL: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_UNEQUAL: u32 = 1;
const FIB_RESULT_ADDRESS_TYPE: u32 = 3;
const FIB_OF_DESTINATION: u32 = 2;
const ADDRESS_TYPE_LOCAL: u32 = 2;
const CONNECTION_STATUS: u32 = 2;
const STATUS_DESTINATION_CHANGED: u32 = 1 << 5;
const NAT_DESTINATION: u32 = 1;
const DROP: u32 = 0;
/// The hook of packets that are for somebody else.
const HOOK_FORWARD: u32 = 2;
const JUMP: i32 = -3;

/// Where the destination's port is in the header that follows that of the network.
const OFFSET_PORT: u32 = 2;
/// The kernel compares names of interfaces with what follows them.
const INTERFACE_BYTES: usize = 16;

/// The kernel's rules.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Socket,
}

impl Nft {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(Peer::Netfilter)?,
        })
    }

    /// A number that changes with every change of any rule, by whomever. Fails where the kernel has no nf_tables.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let told = self.socket.ask(message(GET_GENERATION, 0, FAMILY_NONE))?;
        let id = told
            .payload
            .get(BODY_BYTES..)
            .and_then(|attributes| attribute(attributes, GENERATION_ID))
            .and_then(|id| id.try_into().ok());
        id.map(u32::from_be_bytes)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Makes the tables what is wanted, in one step.
    pub(crate) fn replace(&mut self, wanted: &[Rules]) -> io::Result<()> {
        let mut batch = Vec::new();
        for Rules {
            family,
            table,
            chains,
        } in wanted
        {
            batch.push(message(NEW_TABLE, FLAG_CREATE, family.number()).text(TABLE_NAME, table));
            batch.push(message(DELETE_RULE, 0, family.number()).text(RULE_TABLE, table));
            // First all chains, because rules jump to them.
            batch.extend(chains.iter().map(|(chain, _)| new_chain(*family, table, *chain)));
            for (chain, list) in chains {
                batch.extend(list.iter().map(|rule| new_rule(*family, table, *chain, rule)));
            }
        }
        self.transaction(batch)
    }

    /// Removes the table; one that is gone is no error.
    pub(crate) fn remove(&mut self, family: Family, table: &str) -> io::Result<()> {
        let order = message(DELETE_TABLE, 0, family.number()).text(TABLE_NAME, table);
        match self.transaction(vec![order]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// A number for what is in our tables now: another one when somebody, or we, wrote to them.
    pub(crate) fn fingerprint(&mut self, table: &str) -> io::Result<u64> {
        let mut hasher = DefaultHasher::new();
        // Chains and rules name their table by the same attribute. Kernels that do not look for it tell all rules.
        for kind in [GET_CHAIN, GET_RULE] {
            let question = message(kind, 0, FAMILY_NONE).text(RULE_TABLE, table);
            let listed = self.socket.list(&question, |told| {
                let attributes = told.payload.get(BODY_BYTES..).unwrap_or_default();
                attribute(attributes, RULE_TABLE)
                    .is_some_and(|name| name.strip_suffix(b"\0") == Some(table.as_bytes()))
            })?;
            for told in listed {
                // What begins a message tells the family, and a number that changes with every rule of the node.
                told.payload.first().hash(&mut hasher);
                told.payload.get(BODY_BYTES..).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    /// A chain of somebody who drops what this node would forward, unless a rule says otherwise.
    pub(crate) fn forbids_forwarding(&mut self) -> io::Result<Option<String>> {
        let chains = self.socket.list(&message(GET_CHAIN, 0, FAMILY_NONE), |_| true)?;
        Ok(chains.iter().find_map(|told| drops_forwarded(&told.payload)))
    }

    fn transaction(&mut self, batch: Vec<Message>) -> io::Result<()> {
        let mark = |kind| Message::new(kind, 0, &body(FAMILY_NONE, SUBSYSTEM));
        self.socket.transaction(mark(BATCH_BEGIN), batch, mark(BATCH_END))
    }
}

/// The name of a chain with its table, if it drops forwarded packets by its policy.
fn drops_forwarded(chain: &[u8]) -> Option<String> {
    let (family, attributes) = (chain.first()?, chain.get(BODY_BYTES..)?);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let hook = attribute(attributes, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER))?;
    let policy = attribute(attributes, CHAIN_POLICY)?;
    let of_internet =
        |family: &u8| *family == FAMILY_INTERNET || Family::ALL.iter().any(|known| known.number() == *family);
    let drops = of_internet(family) && number(hook) == Some(HOOK_FORWARD) && number(policy) == Some(DROP);
    let text = |kind| {
        let bytes = attribute(attributes, kind).unwrap_or_default();
        String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
    };
    drops.then(|| format!("{} {}", text(CHAIN_TABLE), text(CHAIN_NAME)))
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &body(family, 0))
}

/// struct nfgenmsg: family, version, resource.
fn body(family: u8, resource: u16) -> [u8; BODY_BYTES] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn new_chain(family: Family, table: &str, chain: Chain) -> Message {
    let order = message(NEW_CHAIN, FLAG_CREATE, family.number())
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, chain.name());
    let Some(hook) = chain.hook() else {
        return order;
    };
    order
        .nest(CHAIN_HOOK, |nest| {
            nest.network_number(HOOK_NUMBER, hook.number)
                .bytes(HOOK_PRIORITY, &hook.priority.to_be_bytes())
        })
        .text(CHAIN_TYPE, hook.kind)
}

fn new_rule(family: Family, table: &str, chain: Chain, rule: &Rule) -> Message {
    message(NEW_RULE, FLAG_CREATE | FLAG_APPEND, family.number())
        .text(RULE_TABLE, table)
        .text(RULE_CHAIN, chain.name())
        .nest(RULE_EXPRESSIONS, |list| {
            let list = rule.matches.iter().fold(list, condition);
            verdict(list, &rule.verdict)
        })
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data)
    })
}

/// Loads something into the first register and compares it.
fn condition(list: Message, condition: &Match) -> Message {
    match condition {
        Match::ToThisNode => {
            let list = expression(list, "fib", |data| {
                data.network_number(1, REGISTER_1)
                    .network_number(2, FIB_RESULT_ADDRESS_TYPE)
                    .network_number(3, FIB_OF_DESTINATION)
            });
            compare(list, COMPARE_EQUAL, &ADDRESS_TYPE_LOCAL.to_ne_bytes())
        }
        Match::In(interface) => {
            let list = meta(list, META_IN_INTERFACE);
            compare(list, COMPARE_EQUAL, &interface_name(interface))
        }
        Match::Out(interface) => {
            let list = meta(list, META_OUT_INTERFACE);
            compare(list, COMPARE_EQUAL, &interface_name(interface))
        }
        Match::NotOut(interface) => {
            let list = meta(list, META_OUT_INTERFACE);
            compare(list, COMPARE_UNEQUAL, &interface_name(interface))
        }
        Match::Source(network) => address(list, source_offset(network.0), *network),
        Match::Destination(network) => address(list, destination_offset(network.0), *network),
        Match::Redirected => {
            let list = expression(list, "ct", |data| {
                data.network_number(1, REGISTER_1)
                    .network_number(2, CONNECTION_STATUS)
            });
            let list = mask(list, &STATUS_DESTINATION_CHANGED.to_ne_bytes());
            compare(list, COMPARE_UNEQUAL, &[0; 4])
        }
        Match::Port(protocol, port) => {
            let list = meta(list, META_PROTOCOL);
            let list = compare(list, COMPARE_EQUAL, &[protocol.number()]);
            let list = payload(list, PAYLOAD_TRANSPORT, OFFSET_PORT, 2);
            compare(list, COMPARE_EQUAL, &port.to_be_bytes())
        }
    }
}

fn verdict(list: Message, verdict: &Verdict) -> Message {
    match verdict {
        Verdict::Drop => decide(list, |nest| nest.network_number(VERDICT_CODE, DROP)),
        Verdict::Jump(chain) => decide(list, |nest| {
            nest.bytes(VERDICT_CODE, &JUMP.to_be_bytes())
                .text(VERDICT_CHAIN, chain.name())
        }),
        Verdict::Masquerade => expression(list, "masq", |data| data),
        Verdict::Redirect(to, port) => {
            let list = load(list, REGISTER_1, &family::octets(*to));
            let list = load(list, REGISTER_2, &port.to_be_bytes());
            expression(list, "nat", |data| {
                data.network_number(1, NAT_DESTINATION)
                    .network_number(2, Family::of(*to).number().into())
                    .network_number(3, REGISTER_1)
                    .network_number(5, REGISTER_2)
            })
        }
    }
}

fn meta(list: Message, key: u32) -> Message {
    expression(list, "meta", |data| {
        data.network_number(1, REGISTER_1).network_number(2, key)
    })
}

fn payload(list: Message, base: u32, offset: u32, length: u32) -> Message {
    expression(list, "payload", |data| {
        data.network_number(1, REGISTER_1)
            .network_number(2, base)
            .network_number(3, offset)
            .network_number(4, length)
    })
}

fn compare(list: Message, operator: u32, value: &[u8]) -> Message {
    expression(list, "cmp", |data| {
        data.network_number(1, REGISTER_1)
            .network_number(2, operator)
            .nest(3, |nest| nest.bytes(DATA_VALUE, value))
    })
}

/// Keeps some bits of the first register.
fn mask(list: Message, mask: &[u8]) -> Message {
    let length = u32::try_from(mask.len()).expect("an address has at most 16 bytes");
    expression(list, "bitwise", |data| {
        data.network_number(1, REGISTER_1)
            .network_number(2, REGISTER_1)
            .network_number(3, length)
            .nest(4, |nest| nest.bytes(DATA_VALUE, mask))
            .nest(5, |nest| nest.bytes(DATA_VALUE, &vec![0; mask.len()]))
    })
}

/// Where the source is in the header of a packet of this kind of addresses.
fn source_offset(address: IpAddr) -> u32 {
    match Family::of(address) {
        Family::V4 => 12,
        Family::V6 => 8,
    }
}

/// The destination follows the source.
fn destination_offset(address: IpAddr) -> u32 {
    source_offset(address) + u32::from(Family::of(address).bits() / 8)
}

fn address(list: Message, offset: u32, network: Cidr) -> Message {
    let length = u32::from(Family::of(network.0).bits() / 8);
    let list = payload(list, PAYLOAD_NETWORK, offset, length);
    let bits = family::mask(network);
    let list = mask(list, &bits);
    let octets = family::octets(network.0);
    let masked: Vec<u8> = octets
        .iter()
        .zip(&bits)
        .map(|(octet, bits)| octet & bits)
        .collect();
    compare(list, COMPARE_EQUAL, &masked)
}

fn load(list: Message, register: u32, value: &[u8]) -> Message {
    expression(list, "immediate", |data| {
        data.network_number(1, register)
            .nest(2, |nest| nest.bytes(DATA_VALUE, value))
    })
}

fn decide(list: Message, verdict: impl FnOnce(Message) -> Message) -> Message {
    expression(list, "immediate", |data| {
        data.network_number(1, REGISTER_VERDICT)
            .nest(2, |nest| nest.nest(DATA_VERDICT, verdict))
    })
}

fn interface_name(name: &str) -> [u8; INTERFACE_BYTES] {
    let mut bytes = [0; INTERFACE_BYTES];
    // The last byte stays zero: no interface has a longer name.
    let kept = name.len().min(INTERFACE_BYTES - 1);
    bytes[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    bytes
}
