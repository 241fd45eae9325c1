//! Whose an object is, asked of the object itself after it was read.

use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind};
use serde::Deserialize;

/// Where an object says whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A volume: the claim that it is bound to.
    Claim,
    /// An attachment: the node that it is for.
    Node,
}

/// What an object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    Ours,
    /// The node must use this claim, and the claim must name this volume: both ends must agree.
    IfClaimed {
        claim: ObjectKey,
    },
    Foreign,
}

impl Owner {
    pub fn judge(self, node: &NodeName, object: &Body) -> Ownership {
        match self {
            Self::Node => {
                let attachment: Option<Attachment> = object.parse().ok();
                match attachment {
                    Some(attachment) if attachment.spec.node_name == node.as_str() => Ownership::Ours,
                    Some(_) | None => Ownership::Foreign,
                }
            }
            Self::Claim => {
                let volume: Option<Volume> = object.parse().ok();
                let claim = volume.and_then(|volume| volume.spec.claim_ref);
                match claim {
                    Some(claim) if !claim.namespace.is_empty() && !claim.name.is_empty() => {
                        let kind = ObjectKind::PersistentVolumeClaim;
                        Ownership::IfClaimed {
                            claim: ObjectKey::namespaced(kind, &claim.namespace, &claim.name),
                        }
                    }
                    Some(_) | None => Ownership::Foreign,
                }
            }
        }
    }

    /// Whether a claim is bound to the volume of this name.
    pub fn claims(claim: &Body, volume: &str) -> bool {
        claim
            .parse::<Claim>()
            .is_ok_and(|claim| !volume.is_empty() && claim.spec.volume_name == volume)
    }
}

#[derive(Deserialize)]
struct Attachment {
    spec: AttachmentSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentSpec {
    #[serde(default)]
    node_name: String,
}

#[derive(Deserialize)]
struct Volume {
    spec: VolumeSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
}

#[derive(Deserialize)]
struct ClaimRef {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Claim {
    spec: ClaimSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSpec {
    #[serde(default)]
    volume_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn volumes_name_their_claim_and_attachments_their_node() {
        let node = NodeName::new("edge-1").unwrap();
        let table = [
            (
                Owner::Claim,
                r#"{"spec":{"claimRef":{"namespace":"a","name":"data"}}}"#,
            ),
            (Owner::Claim, r#"{"spec":{"claimRef":null}}"#),
            (Owner::Claim, r#"{"spec":{"claimRef":{"name":"data"}}}"#),
            (Owner::Claim, r#"{}"#),
            (Owner::Node, r#"{"spec":{"nodeName":"edge-1"}}"#),
            (Owner::Node, r#"{"spec":{"nodeName":"edge-2"}}"#),
            (Owner::Node, r#"{"spec":{}}"#),
            (Owner::Node, r#"7"#),
        ];
        let told: String = table
            .iter()
            .map(|(owner, json)| {
                let object = Body::from_json((*json).to_owned()).unwrap();
                let said = match owner.judge(&node, &object) {
                    Ownership::Ours => "ours".to_owned(),
                    Ownership::IfClaimed { claim } => format!("if {claim} names it"),
                    Ownership::Foreign => "foreign".to_owned(),
                };
                format!("{json}: {said}\n")
            })
            .collect();
        expect![[r#"
            {"spec":{"claimRef":{"namespace":"a","name":"data"}}}: if a/persistentvolumeclaim/data names it
            {"spec":{"claimRef":null}}: foreign
            {"spec":{"claimRef":{"name":"data"}}}: foreign
            {}: foreign
            {"spec":{"nodeName":"edge-1"}}: ours
            {"spec":{"nodeName":"edge-2"}}: foreign
            {"spec":{}}: foreign
            7: foreign
        "#]]
        .assert_eq(&told);
        let claim = Body::from_json(r#"{"spec":{"volumeName":"pv-1"}}"#.to_owned()).unwrap();
        assert!(Owner::claims(&claim, "pv-1"));
        assert!(!Owner::claims(&claim, "pv-2"));
        assert!(!Owner::claims(&Body::null(), ""));
    }
}
