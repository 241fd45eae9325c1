//! The least OpenAPI v2 document in its protobuf encoding.
//!
//! Old kubectl asks for nothing else. It carries no definitions: such clients then skip their own validation and
//! compute patches from the types they were built with.

use super::{TITLE, VERSION};

/// Field numbers of `openapi.v2.Document` and `openapi.v2.Info`.
const DOCUMENT_SWAGGER: u8 = 1;
const DOCUMENT_INFO: u8 = 2;
const DOCUMENT_PATHS: u8 = 8;
const DOCUMENT_DEFINITIONS: u8 = 9;
const INFO_TITLE: u8 = 1;
const INFO_VERSION: u8 = 2;

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2() -> Vec<u8> {
    let mut info = Vec::new();
    field(&mut info, INFO_TITLE, TITLE.as_bytes());
    field(&mut info, INFO_VERSION, VERSION.as_bytes());
    let mut document = Vec::new();
    field(&mut document, DOCUMENT_SWAGGER, b"2.0");
    field(&mut document, DOCUMENT_INFO, &info);
    field(&mut document, DOCUMENT_PATHS, &[]);
    field(&mut document, DOCUMENT_DEFINITIONS, &[]);
    document
}

/// A length-delimited field.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    const LENGTH_DELIMITED: u8 = 2;
    out.push(number << 3 | LENGTH_DELIMITED);
    let length = u8::try_from(bytes.len()).expect("the document has only short fields");
    assert!(length < 0x80, "a longer field needs a longer length");
    out.push(length);
    out.extend_from_slice(bytes);
}
