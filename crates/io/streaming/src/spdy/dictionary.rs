//! The text with which both compressors of SPDY/3 begin, as the protocol's draft gives it: names with their lengths, then
//! values one after the other.

/// Names, each after its length in four bytes.
const NAMES: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// Values, without anything between them.
const VALUES: &[&str] = &[
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized",
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];
/// How many bytes all that is.
pub(super) const BYTES: usize = 1423;
/// Its Adler-32, by which a zlib stream names it.
pub(super) const ADLER: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

/// Writes it.
pub(super) fn write(out: &mut [u8]) {
    let names = NAMES.iter().flat_map(|name| {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
        length.into_iter().chain(name.bytes())
    });
    let values = VALUES.iter().flat_map(|value| value.bytes());
    for (place, byte) in out.iter_mut().zip(names.chain(values)) {
        *place = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_text_that_streams_name() {
        let mut text = vec![0; BYTES + 1];
        write(&mut text);
        assert_eq!(text.pop(), Some(0), "as long as it says");
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in text {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16 | a).to_be_bytes(), ADLER);
    }
}
