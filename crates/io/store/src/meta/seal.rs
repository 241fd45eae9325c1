//! Values that nobody may read from the disk alone: encrypted with a key that lies in a file of its own.
//!
//! A sealed value is `1 | key id (8 bytes) | nonce (12) | ciphertext and tag`. The row's key and kind are authenticated
//! with it, so that a value moved into another row does not open. Nonces are random: with 96 bits, a node that renews a
//! token every second stays far below the 2^32 values at which one key should be retired.
//!
//! The key file holds one key in each line, the one in use first. More than one stand there only while values are being
//! sealed anew after a rotation.

use super::{Cause, Error};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The kinds whose values are sealed: Kubernetes secrets and service account tokens.
const SEALED_KINDS: [&str; 2] = ["secret", "serviceaccounttoken"];
const FORMAT: u8 = 1;
const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 8;
const HEAD_BYTES: usize = 1 + ID_BYTES + NONCE_LEN;
/// A key file is a comment and a few lines of 64 characters; anything longer is not one.
const KEY_FILE_BYTES_MAX: u64 = 4096;
const KEY_FILE_MODE: u32 = 0o600;
const COMMENT: &str =
    "# The key of the secrets in EdgeCore's store. If it is lost, they are asked of the cloud again.\n";

/// Whether values of this kind are sealed.
pub(super) fn is_sealed(kind: &str) -> bool {
    SEALED_KINDS.contains(&kind)
}

/// Why a sealed value does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It was sealed with a key that is not in the file.
    OtherKey,
    /// It is not what was sealed for this row.
    Altered,
}

struct Key {
    bytes: [u8; KEY_BYTES],
    id: [u8; ID_BYTES],
    cipher: LessSafeKey,
}

impl Key {
    fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&digest(&SHA256, &bytes).as_ref()[..ID_BYTES]);
        let unbound =
            UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("the length is that of the algorithm");
        Self {
            bytes,
            id,
            cipher: LessSafeKey::new(unbound),
        }
    }

    fn random(random: &SystemRandom) -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        random.fill(&mut bytes).map_err(|_| no_randomness())?;
        Ok(Self::new(bytes))
    }
}

/// Seals and opens values.
pub(super) struct Sealer {
    /// The one in use first. Never empty.
    keys: Vec<Key>,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Reads the key file, or makes it with a random key. A file that holds no key is moved aside: what it sealed is
    /// lost either way.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::Key {
            path: path.to_owned(),
            cause: Cause::Io(error),
        };
        let random = SystemRandom::new();
        let keys = match read(path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(keys) = keys {
            return Ok(Self { keys, random });
        }
        if path.exists() {
            let aside = beside(path, ".corrupt");
            tracing::error!(
                path = %path.display(), aside = %aside.display(),
                "the key file of the store holds no key; it is moved aside and a new key is made"
            );
            fs::rename(path, aside).map_err(failed)?;
        }
        let keys = vec![Key::random(&random).map_err(failed)?];
        let sealer = Self { keys, random };
        sealer.save(path).map_err(failed)?;
        Ok(sealer)
    }

    /// Puts a new key before the others and saves them all. What is sealed from now on is sealed with the new one.
    pub(super) fn add_key(&mut self, path: &Path) -> Result<(), Error> {
        let add = |sealer: &mut Self| {
            let key = Key::random(&sealer.random)?;
            sealer.keys.insert(0, key);
            sealer.save(path)
        };
        add(self).map_err(|error| Error::Key {
            path: path.to_owned(),
            cause: Cause::Io(error),
        })
    }

    /// Whether older keys are still known, so that a rotation is not finished.
    pub(super) fn has_old_keys(&self) -> bool {
        self.keys.len() > 1
    }

    /// Forgets all keys but the one in use. Only once nothing is sealed with the others.
    pub(super) fn drop_old_keys(&mut self, path: &Path) -> Result<(), Error> {
        self.keys.truncate(1);
        self.save(path).map_err(|error| Error::Key {
            path: path.to_owned(),
            cause: Cause::Io(error),
        })
    }

    /// Whether a sealed value was made with the key in use.
    pub(super) fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.get(1..=ID_BYTES) == Some(&self.keys[0].id[..])
    }

    /// Encrypts the value of a row.
    pub(super) fn seal(&self, key: &str, kind: &str, value: &str) -> io::Result<Vec<u8>> {
        let current = &self.keys[0];
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| no_randomness())?;
        let mut text = value.as_bytes().to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        current
            .cipher
            .seal_in_place_append_tag(unique, row(key, kind), &mut text)
            .map_err(|_| io::Error::other("the value is too long to be sealed"))?;
        let mut sealed = Vec::with_capacity(HEAD_BYTES + text.len());
        sealed.push(FORMAT);
        sealed.extend(current.id);
        sealed.extend(nonce);
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Decrypts the value of a row.
    pub(super) fn open_value(&self, key: &str, kind: &str, sealed: &[u8]) -> Result<String, Unopened> {
        if sealed.len() < HEAD_BYTES || sealed[0] != FORMAT {
            return Err(Unopened::Altered);
        }
        let (head, text) = sealed.split_at(HEAD_BYTES);
        let (id, nonce) = head[1..].split_at(ID_BYTES);
        let key_of_value = self.keys.iter().find(|known| known.id == id);
        let cipher = &key_of_value.ok_or(Unopened::OtherKey)?.cipher;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Altered)?;
        let mut text = text.to_vec();
        let bytes = cipher
            .open_in_place(nonce, row(key, kind), &mut text)
            .map_err(|_| Unopened::Altered)?
            .len();
        text.truncate(bytes);
        String::from_utf8(text).map_err(|_| Unopened::Altered)
    }

    /// Replaces the key file as a whole, so that a power cut leaves the old or the new one.
    fn save(&self, path: &Path) -> io::Result<()> {
        let mut text = COMMENT.to_owned();
        for key in &self.keys {
            for byte in key.bytes {
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        kedge_files::make_directory(kedge_files::directory_of(path))?;
        kedge_files::replace(path, text.as_bytes())
    }
}

fn row<'a>(key: &'a str, kind: &'a str) -> Aad<Vec<u8>> {
    Aad::from([key.as_bytes(), kind.as_bytes()].join(&0))
}

fn no_randomness() -> io::Error {
    io::Error::other("the system gives no random bytes")
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != KEY_FILE_MODE {
        file.set_permissions(fs::Permissions::from_mode(KEY_FILE_MODE))?;
    }
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// All keys of the file, or none if a line is no key.
fn parse(text: &str) -> Option<Vec<Key>> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let keys = lines
        .map(|line| key_of(line.trim()).map(Key::new))
        .collect::<Option<Vec<_>>>()?;
    (!keys.is_empty()).then_some(keys)
}

fn key_of(line: &str) -> Option<[u8; KEY_BYTES]> {
    if line.len() != 2 * KEY_BYTES || !line.is_ascii() {
        return None;
    }
    let mut bytes = [0; KEY_BYTES];
    for (byte, digits) in bytes.iter_mut().zip(line.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
