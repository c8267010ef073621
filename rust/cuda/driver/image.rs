//! Whether bytes are a whole cubin: the driver believes what its header says.

/// Whether these bytes are an ELF file for 64 bits that holds all that its header and section table tell of.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    whole(bytes).is_some()
}

fn whole(bytes: &[u8]) -> Option<()> {
    // Little endian and 64 bits, as every cubin is.
    if bytes.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let (programs, sections) = (long(bytes, 32)?, long(bytes, 40)?);
    let program = (short(bytes, 54)?, short(bytes, 56)?);
    let section = (short(bytes, 58)?, short(bytes, 60)?);
    if section.1 == 0 || section.0 < 64 || (program.1 > 0 && program.0 < 56) {
        return None;
    }
    fits(bytes, programs, program.0.checked_mul(program.1)?)?;
    fits(bytes, sections, section.0.checked_mul(section.1)?)?;
    for at in 0..program.1 {
        let header = programs + at * program.0;
        fits(bytes, long(bytes, header + 8)?, long(bytes, header + 32)?)?;
    }
    for at in 0..section.1 {
        let header = sections + at * section.0;
        // A section without bytes in the file (`SHT_NOBITS`) is memory that the device zeroes.
        if word(bytes, header + 4)? != 8 {
            fits(bytes, long(bytes, header + 24)?, long(bytes, header + 32)?)?;
        }
    }
    Some(())
}

fn fits(bytes: &[u8], from: usize, len: usize) -> Option<()> {
    (from.checked_add(len)? <= bytes.len()).then_some(())
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one section of `len` bytes that begins at 64, and its table behind it.
    fn file(len: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        bytes[40..48].copy_from_slice(&(64 + len).to_le_bytes());
        bytes[58..60].copy_from_slice(&64_u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&1_u16.to_le_bytes());
        bytes.resize(64 + len as usize, 7);
        let mut section = [0; 64];
        section[4] = 1;
        section[24..32].copy_from_slice(&64_u64.to_le_bytes());
        section[32..40].copy_from_slice(&len.to_le_bytes());
        bytes.extend(section);
        bytes
    }

    #[test]
    fn a_file_is_whole_or_is_not() {
        let good = file(100);
        assert!(is_whole(&good), "all that the header tells of is there");
        for len in 0..good.len() {
            assert!(!is_whole(&good[..len]), "cut short after {len} bytes");
        }
        for (at, name) in [(0, "magic"), (4, "class"), (5, "order")] {
            let mut bad = good.clone();
            bad[at] ^= 3;
            assert!(!is_whole(&bad), "another {name}");
        }
        // Numbers so large that sums overflow.
        for at in [40, 164 + 24, 164 + 32] {
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            assert!(!is_whole(&bad), "the largest number at {at}");
        }
    }
}
