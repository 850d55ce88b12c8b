//! Addresses of HBA lines.

use core::net::IpAddr;

/// Which clients a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Those of any address.
    All,
    /// Those whose address under the mask is this one.
    Masked(IpAddr, IpAddr),
}

impl Address {
    /// Whether a client's address fits.
    pub fn contains(&self, client: IpAddr) -> bool {
        match (self, client) {
            (Address::All, _) => true,
            (Address::Masked(IpAddr::V4(net), IpAddr::V4(mask)), IpAddr::V4(client)) => {
                client.to_bits() & mask.to_bits() == net.to_bits()
            }
            (Address::Masked(IpAddr::V6(net), IpAddr::V6(mask)), IpAddr::V6(client)) => {
                client.to_bits() & mask.to_bits() == net.to_bits()
            }
            (Address::Masked(..), _) => false,
        }
    }

    /// Whether it has bits outside its mask, so that nobody fits.
    pub(super) fn is_void(&self) -> bool {
        match self {
            Address::All => false,
            Address::Masked(net, _) => !self.contains(*net),
        }
    }
}

/// The mask of so many leading bits, of the family of `net`.
pub(super) fn mask_of(net: IpAddr, bits: u32) -> Option<IpAddr> {
    match net {
        IpAddr::V4(_) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Some(IpAddr::V4(mask.into()))
        }
        IpAddr::V6(_) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Some(IpAddr::V6(mask.into()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
