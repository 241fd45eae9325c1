//! Serving certificates of nodes: approved requests for `kubernetes.io/kubelet-serving` are signed by the cluster's CA.
//!
//! Others approve; here is only checked that a request is of the shape that its signer stands for. One that is not gets
//! the condition `Failed`.

use crate::config::{Config, OpenError};
use crate::tls::credentials;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kedge_apimachinery::meta::{self, items, text};
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Unless the request says something shorter.
const LIFETIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of clients may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Names that one certificate may have: a node has a handful of addresses.
const NAMES_MAX: usize = 64;

pub(crate) struct CertificateSigner {
    issuer: Issuer<'static, KeyPair>,
    ca_ends: SystemTime,
}

impl CertificateSigner {
    /// `None` when the key of the CA is not ours.
    pub(crate) fn of(config: &Config) -> Result<Option<Self>, OpenError> {
        let Some(key_pem) = &config.client_ca_key_pem else {
            return Ok(None);
        };
        let failed = |detail: String| credentials("client CA key", detail);
        let key = KeyPair::from_pem(key_pem).map_err(|error| failed(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&config.client_ca_pem, key)
            .map_err(|error| failed(error.to_string()))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(config.client_ca_pem.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let (_, ca) = X509Certificate::from_der(&pem.contents).map_err(|error| failed(error.to_string()))?;
        let ends = u64::try_from(ca.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Some(Self {
            issuer,
            ca_ends: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
        }))
    }

    /// The request with its certificate, or with the reason why it gets none; `None` when there is nothing to do.
    pub(crate) fn settle(&self, request: &Value, now: Timestamp) -> Option<Value> {
        if !is_due(request) {
            return None;
        }
        let mut settled = request.clone();
        match self.sign(request, SystemTime::from(now)) {
            Ok(pem) => meta::set(
                &mut settled,
                &["status", "certificate"],
                STANDARD.encode(pem).into(),
            ),
            Err(why) => {
                meta::set_condition(
                    &mut settled,
                    "Failed",
                    "True",
                    "SignerValidationFailure",
                    &why,
                    now,
                );
            }
        }
        Some(settled)
    }

    fn sign(&self, request: &Value, now: SystemTime) -> Result<String, String> {
        let pem = STANDARD
            .decode(text(request, &["spec", "request"]))
            .map_err(|error| format!("spec.request is no base64: {error}"))?;
        let pem = String::from_utf8(pem).map_err(|_| "spec.request is no PEM text".to_owned())?;
        let mut asked = CertificateSigningRequestParams::from_pem(&pem)
            .map_err(|error| format!("spec.request is no certificate request: {error}"))?;
        check_usages(request)?;
        check_subject(&asked)?;
        let seconds = meta::number(request, &["spec", "expirationSeconds"]);
        let lifetime = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LIFETIME_MAX, Duration::from_secs)
            .min(LIFETIME_MAX);
        asked.params.not_before = (now - CLOCK_SKEW).into();
        asked.params.not_after = (now + lifetime).min(self.ca_ends).into();
        asked.params.is_ca = rcgen::IsCa::NoCa;
        asked.params.key_usages = vec![
            rcgen::KeyUsagePurpose::DigitalSignature,
            rcgen::KeyUsagePurpose::KeyEncipherment,
        ];
        asked.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        asked.params.use_authority_key_identifier_extension = true;
        let signed = asked.signed_by(&self.issuer);
        signed
            .map(|certificate| certificate.pem())
            .map_err(|error| format!("signing failed: {error}"))
    }
}

/// Approved, for our signer, and not settled.
fn is_due(request: &Value) -> bool {
    let open = text(request, &["status", "certificate"]).is_empty()
        && !meta::condition_true(request, "Denied")
        && !meta::condition_true(request, "Failed");
    open && meta::condition_true(request, "Approved")
        && text(request, &["spec", "signerName"]) == KUBELET_SERVING
}

fn check_usages(request: &Value) -> Result<(), String> {
    let usages: Vec<&str> = items(request, &["spec", "usages"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let known = ["digital signature", "key encipherment", "server auth"];
    match usages.iter().find(|usage| !known.contains(usage)) {
        Some(usage) => Err(format!("usage {usage:?} is not one of {KUBELET_SERVING}")),
        None if !usages.contains(&"server auth") => Err("usage \"server auth\" is missing".to_owned()),
        None => Ok(()),
    }
}

fn check_subject(asked: &CertificateSigningRequestParams) -> Result<(), String> {
    let subject = |kind: DnType| match asked.params.distinguished_name.get(&kind) {
        Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
        Some(DnValue::Utf8String(text)) => text.clone(),
        Some(DnValue::Ia5String(text)) => text.as_str().to_owned(),
        Some(_) | None => String::new(),
    };
    if subject(DnType::OrganizationName) != NODES {
        return Err(format!("the organization must be {NODES}"));
    }
    if !subject(DnType::CommonName).starts_with(NODE_PREFIX) {
        return Err(format!("the common name must begin with {NODE_PREFIX}"));
    }
    let names = &asked.params.subject_alt_names;
    let is_host = |name: &SanType| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_));
    match names.len() {
        0 => Err("there must be a DNS name or an IP address".to_owned()),
        many if many > NAMES_MAX => Err(format!("more than {NAMES_MAX} names")),
        _ if !names.iter().all(is_host) => Err("only DNS names and IP addresses may be asked for".to_owned()),
        _ => Ok(()),
    }
}
