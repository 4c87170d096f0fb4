//! How event files are cut into records: length, its checksum, content, its checksum, as TFRecord files have it.

use crc::{CRC_32_ISCSI, Crc};

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// One record with this content.
pub fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), content, &masked(content)].concat()
}

/// The checksum, turned and shifted so that checksums of what has checksums in it are no special case.
fn masked(bytes: &[u8]) -> [u8; 4] {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_crc32c() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_record_says_how_long_it_is_and_both_parts_are_summed() {
        let written = record(b"abc");
        assert_eq!(written.len(), 8 + 4 + 3 + 4);
        assert_eq!(written[..8], 3u64.to_le_bytes());
        assert_eq!(written[8..12], masked(&3u64.to_le_bytes()));
        assert_eq!((&written[12..15], &written[15..]), (&b"abc"[..], &masked(b"abc")[..]));
    }
}
