//! Errors, and bytes of files.

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const CHUNK: u64 = 1 << 20;

/// The first rule that is broken, or what the system refused: code and an explanation.
pub struct Failure {
    pub code: &'static str,
    pub text: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure { code: "E_IO", text: error.to_string() }
    }
}

/// `what` is formatted only if the rule is broken.
pub fn rule(holds: bool, code: &'static str, what: impl Display) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Failure { code, text: what.to_string() })
    }
}

pub fn in_file(path: &Path, failure: Failure) -> Failure {
    Failure { code: failure.code, text: format!("{}: {}", path.display(), failure.text) }
}

/// Little-endian.
pub fn uint(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    uint(&bytes[at..at + 4]) as u32
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    uint(&bytes[at..at + 8])
}

pub fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at + 8)) << 64 | u128::from(u64_at(bytes, at))
}

pub fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

pub fn ceil_div(x: u64, y: u64) -> u64 {
    x / y + u64::from(x % y != 0)
}

/// For x at most 2^63.
pub fn align(x: u64, a: u64) -> u64 {
    ceil_div(x, a) * a
}

/// Makes room for `length` items in all; too little memory is an error, not the end of the program.
pub fn reserve<T>(items: &mut Vec<T>, length: u64) -> Result<()> {
    let more = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(items.len());
    items
        .try_reserve_exact(more)
        .map_err(|error| Failure { code: "E_NO_MEMORY", text: error.to_string() })
}

pub fn resize(bytes: &mut Vec<u8>, length: u64) -> Result<()> {
    reserve(bytes, length)?;
    bytes.resize(length as usize, 0);
    Ok(())
}

pub fn read(file: &File, at: u64, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    resize(&mut bytes, size)?;
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Calls `each` with pieces of the `size` bytes at `at`: whole multiples of `step`, which divides
/// `size` and is at most CHUNK.
pub fn scan(
    file: &File,
    at: u64,
    size: u64,
    step: u64,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (mut piece, mut done) = (Vec::new(), 0);
    while done < size {
        resize(&mut piece, (size - done).min(CHUNK / step * step))?;
        file.read_exact_at(&mut piece, at + done)?;
        each(&piece)?;
        done += piece.len() as u64;
    }
    Ok(())
}

pub fn check_zeros(file: &File, at: u64, end: u64, code: &'static str) -> Result<()> {
    scan(file, at, end.saturating_sub(at), 1, |piece| {
        rule(all_zero(piece), code, format_args!("before byte {}", end))
    })
}

pub fn open_file(path: &Path) -> Result<File> {
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure { code: "E_NOT_FOUND", text: error.to_string() },
        _ => Failure::from(error),
    })?;
    rule(found.is_file(), "E_IO", "not a regular file")?;
    Ok(File::open(path)?)
}
