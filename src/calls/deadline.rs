//! Parses `grpc-timeout`, the caller's deadline (gRPC over HTTP/2, "Requests").

use std::time::Duration;

use http::HeaderMap;
use tonic::Status;

/// Longest value, in digits.
const DIGITS_MAX: usize = 8;

/// Returns how long the whole call may take, if its headers limit it.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let read = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        let plain = !digits.is_empty() && digits.len() <= DIGITS_MAX && digits.bytes().all(|b| b.is_ascii_digit());
        let amount: u64 = digits.parse().ok().filter(|_| plain)?;
        Some(match unit {
            "H" => Duration::from_secs(amount * 3_600),
            "M" => Duration::from_secs(amount * 60),
            "S" => Duration::from_secs(amount),
            "m" => Duration::from_millis(amount),
            "u" => Duration::from_micros(amount),
            "n" => Duration::from_nanos(amount),
            _ => return None,
        })
    };
    let malformed = || Status::invalid_argument("grpc-timeout is not 1 to 8 digits and one of H, M, S, m, u, n");
    read().map(Some).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::HeaderValue;

    use super::*;

    fn of(value: &'static [u8]) -> Result<Option<Duration>, Status> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_bytes(value).unwrap());
        timeout(&headers)
    }

    #[test]
    fn grpc_timeouts_parse_in_every_unit() {
        for (value, expected) in [
            (&b"1H"[..], Duration::from_secs(3_600)),
            (b"2M", Duration::from_secs(120)),
            (b"99999999S", Duration::from_secs(99_999_999)),
            (b"250m", Duration::from_millis(250)),
            (b"0u", Duration::ZERO),
            (b"7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(of(value).unwrap(), Some(expected));
        }
        for value in [&b""[..], b"S", b"1", b"1h", b"+1S", b"1.5S", b"-1S", b" 1S", b"123456789S", b"1SS", b"\xc3\xa9S"]
        {
            assert_eq!(of(value).unwrap_err().code(), tonic::Code::InvalidArgument, "{value:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }
}
