//! Places as text: WGS 84 coordinates, CAP polygons and circles, UN/LOCODE.
//!
//! In scope: syntax and ranges. Out of scope: whether a LOCODE is listed, and geometry.

use std::fmt;
use std::str::FromStr;

use super::countries::is_alpha2;
use super::rules::Rule;
use crate::limits::POLYGON_POINTS_MAX;

/// A point in WGS 84, written `lat,lon` in decimal degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Degrees north, -90 to 90.
    pub lat: f64,
    /// Degrees east, -180 to 180.
    pub lon: f64,
}

/// CAP 1.2 `polygon`: four points or more separated by spaces, the last equal to the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Polygon(pub Vec<Point>);

/// CAP 1.2 `circle`: `lat,lon radius`, the radius in kilometres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Circle {
    /// Its centre.
    pub centre: Point,
    /// Kilometres; half the equator at most.
    pub radius_km: f64,
}

/// UN/LOCODE (UN/ECE Recommendation 16): ISO 3166-1 alpha-2 code (or `XZ`, international waters)
/// and three of `A`–`Z`, `2`–`9`: `TNTUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Locode([u8; 5]);

/// Text that is not a valid place of the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {0}")]
pub struct NotAPlace(Rule);

impl From<NotAPlace> for Rule {
    fn from(error: NotAPlace) -> Self {
        error.0
    }
}

/// Parses a number in plain decimal form: no exponent, no `inf`, no bare dot.
pub(super) fn decimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| (1..=18).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    if all_digits(whole) && all_digits(fraction) { text.parse().ok() } else { None }
}

impl FromStr for Point {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let (lat, lon) = text.split_once(',').ok_or(NotAPlace(Rule::Point))?;
        let degrees = |text, max: f64| decimal(text).filter(|n| n.abs() <= max).ok_or(NotAPlace(Rule::Point));
        Ok(Self { lat: degrees(lat, 90.0)?, lon: degrees(lon, 180.0)? })
    }
}

impl FromStr for Polygon {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let points: Result<Vec<Point>, _> = text.split(' ').take(POLYGON_POINTS_MAX + 1).map(str::parse).collect();
        let points = points.map_err(|_| NotAPlace(Rule::Polygon))?;
        let closed = points.first() == points.last();
        if closed && (4..=POLYGON_POINTS_MAX).contains(&points.len()) {
            Ok(Self(points))
        } else {
            Err(NotAPlace(Rule::Polygon))
        }
    }
}

impl FromStr for Circle {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let (centre, radius) = text.split_once(' ').ok_or(NotAPlace(Rule::Circle))?;
        let centre = centre.parse().map_err(|_| NotAPlace(Rule::Circle))?;
        let radius_km = decimal(radius).filter(|km| (0.0..=20_038.0).contains(km)).ok_or(NotAPlace(Rule::Circle))?;
        Ok(Self { centre, radius_km })
    }
}

impl FromStr for Locode {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let code: [u8; 5] = text.as_bytes().try_into().map_err(|_| NotAPlace(Rule::Locode))?;
        let country = text.get(..2).is_some_and(|country| is_alpha2(country) || country == "XZ");
        let place = code[2..].iter().all(|b| b.is_ascii_uppercase() || (b'2'..=b'9').contains(b));
        if country && place { Ok(Self(code)) } else { Err(NotAPlace(Rule::Locode)) }
    }
}

impl fmt::Display for Locode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_checked_for_form_and_range() {
        for good in ["36.8065,10.1815", "-90,180", "0,0", "13.5116,2.1254"] {
            assert!(good.parse::<Point>().is_ok(), "{good}");
        }
        for bad in ["", "91,0", "0,180.5", "1e1,0", "inf,0", "NaN,0", "1 ,2", "1", ".5,1", "1.,1", "1,2,3", "+1,2"] {
            assert!(bad.parse::<Point>().is_err(), "{bad}");
        }
        assert!("0,0 0,1 1,1 0,0".parse::<Polygon>().is_ok());
        for bad in ["0,0 0,1 1,1", "0,0 0,1 1,1 1,0", "0,0 0,1 0,0", ""] {
            assert!(bad.parse::<Polygon>().is_err(), "{bad}");
        }
        assert!(vec!["0,0"; POLYGON_POINTS_MAX + 1].join(" ").parse::<Polygon>().is_err());
        assert!("32.9,13.2 15".parse::<Circle>().is_ok());
        assert!("32.9,13.2 -1".parse::<Circle>().is_err());
        assert!("TNTUN".parse::<Locode>().is_ok());
        assert!("XZ2AB".parse::<Locode>().is_ok());
        for bad in ["QQTUN", "tntun", "TNTU1", "TN TUN", "TNTU", "T2TUN", ""] {
            assert!(bad.parse::<Locode>().is_err(), "{bad}");
        }
    }
}
