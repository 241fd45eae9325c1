//! How a command ended, as the error stream tells it: an object of kind Status, or a plain sentence for old clients.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An ending in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    json: Bytes,
    /// `None`: it ended well.
    sentence: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    metadata: Empty,
    status: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

/// What is read of one.
#[derive(Deserialize)]
struct Told {
    status: String,
    #[serde(default)]
    message: String,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    message: String,
}

impl Status {
    pub fn success() -> Self {
        let json = print("Success", "", "", None, None);
        let sentence = None;
        Self { json, sentence }
    }

    /// A command that was run for somebody has ended with this exit code.
    pub fn exited(command: &[String], code: i32) -> Self {
        if code == 0 {
            return Self::success();
        }
        let command = command.join(" ");
        let message = format!(
            "command terminated with non-zero exit code: error executing command [{command}], exit code {code}"
        );
        let details = Details {
            causes: [Cause {
                reason: "ExitCode",
                message: code.to_string(),
            }],
        };
        Self {
            json: print("Failure", &message, "NonZeroExitCode", Some(details), None),
            sentence: Some(message),
        }
    }

    /// What was asked for did not work.
    pub fn failed(why: &str) -> Self {
        let message = format!("Internal error occurred: {why}");
        let details = Details {
            causes: [Cause {
                reason: "",
                message: why.to_owned(),
            }],
        };
        Self {
            json: print("Failure", &message, "InternalError", Some(details), Some(500)),
            sentence: Some(message),
        }
    }

    /// What another server has said, as it is; what is no Status is a failure that says so.
    pub(crate) fn verbatim(json: Bytes) -> Self {
        let told: Result<Told, _> = serde_json::from_slice(&json);
        match told {
            Ok(told) => Self {
                json,
                sentence: (told.status != "Success").then_some(told.message),
            },
            Err(_) => Self::failed(&format!("the runtime says {:?}", String::from_utf8_lossy(&json))),
        }
    }

    pub fn json(&self) -> Bytes {
        self.json.clone()
    }

    /// For clients before version 4, which read nothing as "well".
    pub fn sentence(&self) -> Option<Bytes> {
        self.sentence.clone().map(Bytes::from)
    }
}

fn print(status: &str, message: &str, reason: &str, details: Option<Details>, code: Option<u16>) -> Bytes {
    let metadata = Empty {};
    let printed = Printed {
        metadata,
        status,
        message,
        reason,
        details,
        code,
    };
    let json = serde_json::to_vec(&printed).expect("text and numbers are always JSON");
    Bytes::from(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(status: &Status) -> String {
        String::from_utf8(status.json().to_vec()).unwrap()
    }

    #[test]
    fn endings_are_told_as_containerd_told_them() {
        let command = ["/bin/sh", "-c", "exit 3"].map(str::to_owned);
        assert_eq!(
            json(&Status::exited(&command, 3)),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: error executing command [/bin/sh -c exit 3], exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert_eq!(
            json(&Status::exited(&command, 0)),
            r#"{"metadata":{},"status":"Success"}"#
        );
        assert_eq!(
            json(&Status::failed("no such file")),
            r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no such file","reason":"InternalError","details":{"causes":[{"message":"no such file"}]},"code":500}"#
        );
    }

    #[test]
    fn old_clients_get_a_sentence_or_nothing() {
        for status in [
            Status::exited(&["false".to_owned()], 1),
            Status::success(),
            Status::failed("x"),
        ] {
            assert_eq!(Status::verbatim(status.json()), status);
        }
        assert_eq!(Status::success().sentence(), None);
        // A client that reads nothing believes that all is well.
        for strange in ["no JSON", "{}", "[]"] {
            let sentence = Status::verbatim(Bytes::from(strange)).sentence().unwrap();
            assert!(sentence.starts_with(b"Internal error occurred: the runtime says"));
        }
    }
}
