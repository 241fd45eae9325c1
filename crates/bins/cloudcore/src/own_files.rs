//! The operator's own authority and server certificate in files: used where they exist, both of a pair or neither.

use anyhow::{Context, Result, bail};
use kedge_config::cloudcore::CertificateFiles;
use kedge_pki::{Authority, Certificate, Identity, Key, UnixTime, show_time};
use std::fs::File;
use std::io::{ErrorKind, Read};

/// A chain of a few certificates in PEM.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate file and the key beside it, with the keys of the configuration that name them.
struct Pair<'a> {
    certificate: (&'static str, &'a str),
    key: (&'static str, &'a str),
}

/// `tlsCAFile` and `tlsCAKeyFile`.
pub(crate) fn authority(files: &CertificateFiles) -> Result<Option<Authority>> {
    let pair = Pair {
        certificate: ("modules.cloudHub.tlsCAFile", &files.authority),
        key: ("modules.cloudHub.tlsCAKeyFile", &files.authority_key),
    };
    let Some((certificate, key)) = pair.read()? else {
        return Ok(None);
    };
    Authority::from_pem(&certificate, &key)
        .map(Some)
        .with_context(|| pair.use_them())
}

/// `tlsCertFile` and `tlsPrivateKeyFile`.
pub(crate) fn server(
    files: &CertificateFiles,
    authority: &Authority,
    now: UnixTime,
) -> Result<Option<Identity>> {
    let pair = Pair {
        certificate: ("modules.cloudHub.tlsCertFile", &files.certificate),
        key: ("modules.cloudHub.tlsPrivateKeyFile", &files.key),
    };
    let Some((certificate, key)) = pair.read()? else {
        return Ok(None);
    };
    let chain = Certificate::chain_from_pem(&certificate).with_context(|| pair.use_them())?;
    let key = Key::from_pem(&key).with_context(|| pair.use_them())?;
    let server =
        Identity::new(chain, key, authority.certificate().clone()).with_context(|| pair.use_them())?;
    let info = server.certificate().info();
    let (name, path) = pair.certificate;
    if let Some(node) = info.node() {
        // An edge on the same machine keeps its certificate at the same official place.
        bail!(
            "{name} {path} is the certificate of node {node}, not of a server; name another file, or \"\" for none"
        );
    }
    if !info.serves {
        bail!("{name} {path} is not for servers; it needs the extended key usage serverAuth");
    }
    if !info.is_valid_at(now) {
        let (from, until) = (show_time(info.not_before), show_time(info.not_after));
        bail!(
            "{name} {path} is valid from {from} to {until} and the clock of this machine says {}",
            show_time(now)
        );
    }
    if !server.certificate().is_signed_by(authority.certificate()) {
        tracing::warn!(
            path,
            "{name} is not signed by the authority that edges trust; edges with rootCA.crt refuse it"
        );
    }
    Ok(Some(server))
}

impl Pair<'_> {
    /// Both files, or `None` when neither exists.
    fn read(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let lone = |(there, path): (&str, &str), (missing, other): (&str, &str)| {
            anyhow::anyhow!(
                "{there} {path} exists but {missing} {other} does not; put both there, or name \"\" for both to use \
                 the secret"
            )
        };
        match (read(self.certificate)?, read(self.key)?) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(lone(self.certificate, self.key)),
            (None, Some(_)) => Err(lone(self.key, self.certificate)),
        }
    }

    fn use_them(&self) -> String {
        let ((name, path), (key_name, key)) = (self.certificate, self.key);
        format!("use {name} {path} and {key_name} {key}")
    }
}

fn read((name, path): (&str, &str)) -> Result<Option<Vec<u8>>> {
    if path.is_empty() {
        return Ok(None);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(format!("read {name} {path}")),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {name} {path}"))?;
    Ok(Some(bytes))
}
