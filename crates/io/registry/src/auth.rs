//! Who asks: the challenge of a registry, and the token that answers it.

use crate::http::{Answer, Asked, Origin};
use crate::{Asker, Client, Error};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use kedge_containers::Credentials;
use serde::Deserialize;
use std::fmt::Write as _;
use tokio::sync::Mutex;

/// A token has a few kilobytes.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;
const CLIENT_ID: &str = "kedge";

/// The requests of one pull to one host. Its parts share a token.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    origin: Origin,
    /// The path of the image in the registry.
    path: String,
    /// As the user named it, for errors.
    image: String,
    asker: Asker,
    authorization: Mutex<Option<String>>,
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    pub(crate) fn new(client: Client, host: &str, path: &str, image: &str, asker: Asker) -> Self {
        let origin = Origin::new(host, client.config());
        Self {
            client,
            origin,
            path: path.to_owned(),
            image: image.to_owned(),
            asker,
            authorization: Mutex::new(None),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn host(&self) -> &str {
        &self.origin.host
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Asks, and once more with a token when the registry wants one.
    pub(crate) async fn ask(&self, asked: Asked) -> Result<Answer, Error> {
        let held = self.authorization.lock().await.clone();
        let answer = self
            .client
            .send(&self.origin, with(&asked, held.as_deref()))
            .await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        // Whom the registry redirects to is not told who asks, nor where to ask for a token.
        let challenge = challenge(&answer).filter(|_| answer.origin == self.origin);
        let Some(challenge) = challenge else {
            return Err(answer.refusal(&self.image).await);
        };
        let authorization = {
            let mut slot = self.authorization.lock().await;
            // Another part of the pull may have got one meanwhile.
            if *slot == held {
                *slot = Some(self.answer(&challenge).await?);
            }
            slot.clone()
        };
        self.client
            .send(&self.origin, with(&asked, authorization.as_deref()))
            .await
    }

    async fn answer(&self, challenge: &Challenge) -> Result<String, Error> {
        match challenge {
            Challenge::Basic => match &self.asker {
                Some(asker) if !asker.username.is_empty() => Ok(basic(asker)),
                Some(_) | None => Err(Error::Denied {
                    image: self.image.clone(),
                    host: self.origin.host.clone(),
                    reason: "it wants a name and a password, and there are none for it".to_owned(),
                }),
            },
            Challenge::Bearer { .. } if self.registry_token().is_some() => {
                Ok(format!("Bearer {}", self.registry_token().unwrap_or_default()))
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => self.token(realm, service.as_deref(), scope.as_deref()).await,
        }
    }

    fn registry_token(&self) -> Option<&str> {
        let token = &self.asker.as_ref()?.registry_token;
        (!token.is_empty()).then_some(token.as_str())
    }

    async fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Error> {
        let bad = |reason: &str| Error::BadAnswer {
            host: self.origin.host.clone(),
            reason: reason.to_owned(),
        };
        let place: Uri = realm.parse().map_err(|_| bad("it names no address for tokens"))?;
        let origin = self
            .client
            .origin_of(&place)
            .ok_or_else(|| bad("it sends for tokens to an address without TLS, which is not asked"))?;
        let pull = format!("repository:{}:pull", self.path);
        let scope = scope.unwrap_or(&pull);
        let mut fields: Vec<_> = service.map(|service| ("service", service)).into_iter().collect();
        let own = place.query().map(|query| format!("{query}&")).unwrap_or_default();
        let asked = match &self.asker {
            Some(asker) if !asker.identity_token.is_empty() => {
                fields.extend([
                    ("scope", scope),
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("refresh_token", asker.identity_token.as_str()),
                ]);
                let target = place
                    .path_and_query()
                    .map_or(place.path(), |target| target.as_str());
                let mut asked = Asked::get(target).with(CONTENT_TYPE, "application/x-www-form-urlencoded");
                asked.method = Method::POST;
                asked.body = Bytes::from(form(&fields));
                asked
            }
            asker => {
                // In an address each stands for itself, in a form all stand together.
                fields.extend(scope.split(' ').map(|scope| ("scope", scope)));
                let asked = Asked::get(format!("{}?{own}{}", place.path(), form(&fields)));
                match asker {
                    Some(asker) if !asker.username.is_empty() => asked.with(AUTHORIZATION, &basic(asker)),
                    Some(_) | None => asked,
                }
            }
        };
        let mut answer = self.client.send(&origin, asked).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(&self.image).await);
        }
        let bytes = answer.bytes(TOKEN_BYTES_MAX).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| bad("the answer of its token service is no token"))?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| bad("the answer of its token service holds no token"))?;
        Ok(format!("Bearer {token}"))
    }
}

fn with(asked: &Asked, authorization: Option<&str>) -> Asked {
    match authorization {
        Some(authorization) => asked.clone().with(AUTHORIZATION, authorization),
        None => asked.clone(),
    }
}

fn basic(asker: &Credentials) -> String {
    let pair = format!("{}:{}", asker.username, asker.password);
    format!("Basic {}", STANDARD.encode(pair))
}

fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // A string can always be written to.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// What a registry wants to see. Where it offers several ways a token goes before a password, which is the registry's own.
fn challenge(answer: &Answer) -> Option<Challenge> {
    let all = answer.headers.get_all(WWW_AUTHENTICATE).iter();
    let known = all.filter_map(|text| parse(text.to_str().ok()?));
    known.min_by_key(|challenge| matches!(challenge, Challenge::Basic))
}

/// Reads one challenge, if it is of a kind that is known.
fn parse(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let fields = fields(rest);
    let field = |name: &str| {
        let found = fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    };
    Some(Challenge::Bearer {
        realm: field("realm")?,
        service: field("service"),
        scope: field("scope"),
    })
}

/// `name="value"` or `name=value`, with commas between; a backslash in quotes takes the next character as it is.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while rest.peek().is_some() {
        let name: String = std::iter::from_fn(|| rest.next_if(|c| *c != '=' && *c != ',')).collect();
        if rest.next_if_eq(&'=').is_none() {
            rest.next();
            continue;
        }
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                value.extend(if c == '\\' { rest.next() } else { Some(c) });
            }
        } else {
            value.extend(std::iter::from_fn(|| rest.next_if(|c| *c != ',')));
        }
        while rest.next_if(|c| *c == ',' || *c == ' ').is_some() {}
        found.push((name.trim().to_owned(), value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, want: Expect) {
        want.assert_eq(&match parse(text) {
            None => "none".to_owned(),
            Some(Challenge::Basic) => "basic".to_owned(),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => format!(
                "{realm} {} {}",
                service.unwrap_or_default(),
                scope.unwrap_or_default()
            ),
        });
    }

    #[test]
    fn challenges() {
        check("Basic realm=\"x\"", expect!["basic"]);
        check(
            "Bearer realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push\"",
            expect!["https://auth.example/token r.example repository:a/b:pull,push"],
        );
        check(
            "bearer service=plain, realm=\"https://a.example/\\\"t\"",
            expect!["https://a.example/\"t plain "],
        );
        check("Bearer service=\"no realm\"", expect!["none"]);
        check("Negotiate abc", expect!["none"]);
        check("", expect!["none"]);
        check("Bearer realm=\"never closed", expect!["never closed  "]);
        check("Bearer ,,=,realm=", expect!["  "]);
    }

    #[test]
    fn forms_are_escaped() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull"), ("x", "ü &")]),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%BC%20%26"
        );
    }
}
