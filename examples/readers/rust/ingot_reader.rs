//! A full verifier of Ingot containers, written from spec/container.md and spec/quantization.md
//! alone.  "Step N" is a step of container.md, section 12; "section" is one of container.md unless
//! quantization.md is named.  Standard library, libxxhash and libzstd.
//!
//!     rustc --edition 2021 -O ingot_reader.rs
//!     ingot_reader [--values] FILE
//!
//! Memory: the tensor records and names of all shards (at most 2^20 tensors), 16 bytes a chunk
//! while step 22 sorts ZMAP, and a few chunks; tensors are streamed whatever their size.
#![deny(unsafe_code)]

mod base;
mod libraries;
mod shard;
mod values;

use base::*;
use libraries::Xxh3;
use shard::*;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use values::{verify, Chunks, Grouped};

// ---- sets: step 23 ----

/// Section 11; None: from this name no sibling's can be formed.
fn sibling(path: &Path, index: u32, count: u32) -> Option<PathBuf> {
    fn number(digits: &[u8]) -> Option<u32> {
        let digits = std::str::from_utf8(digits).ok()?;
        digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok())?
    }
    let name = path.file_name()?.as_bytes();
    let dot = name.iter().rposition(|c| *c == b'.').unwrap_or(name.len());
    let (stem, extension) = name.split_at(dot);
    let (stem, place) = stem.split_at(stem.len().checked_sub(15)?);
    let (a, b) = (number(&place[1..6])?, number(&place[10..15])?);
    if place[0] != b'-' || place[6..10] != *b"-of-" || b != count || !(1..=b).contains(&a) {
        return None;
    }
    let place = format!("-{:05}-of-{:05}", index + 1, count);
    let name = [stem, place.as_bytes(), extension].concat();
    Some(path.with_file_name(OsStr::from_bytes(&name)))
}

/// The shards of the container that any of its files names, in order; steps 1 to 23.
fn open_set(path: &Path) -> Result<Vec<Shard>> {
    let named = Shard::open(path)?;
    let count = named.count;
    if count == 1 {
        return Ok(vec![named]);
    }
    drop(named);
    let (mut shards, mut meta, mut roots): (Vec<Shard>, Vec<u8>, Vec<u8>) = Default::default();
    let mut tensors = 0;
    for index in 0..count {
        let missing = |text| Failure { code: "E_SHARD_MISSING", text };
        let path = sibling(path, index, count)
            .ok_or_else(|| missing(format!("{}: not the name of a shard", path.display())))?;
        let shard = Shard::open(&path).map_err(|failure| match failure.code {
            "E_NOT_FOUND" => missing(failure.text),
            _ => failure,
        })?;
        let file = open_file(&path)?;
        let section = shard.section(b"META");
        let its_meta = read(&file, section.offset, section.size)?;
        let mut belongs = shard.index == index && shard.count == count;
        if let Some(first) = shards.first() {
            let root = u128_at(&roots, 16 * (index as usize - 1));
            belongs = belongs
                && shard.profile == first.profile
                && shard.set_id == first.set_id
                && its_meta == meta
                && shard.root == root;
        }
        rule(belongs, "E_SHARD", format_args!("{}: not of this set", path.display()))?;
        if index == 0 {
            let section = shard.section(b"SHRD");
            (meta, roots) = (its_meta, read(&file, section.offset, section.size)?);
        }
        tensors += shard.tensor_count();
        // Beyond the limit the other shards are still to be checked, but no longer kept.
        if index == 0 || tensors <= MAX_TENSORS {
            shards.push(shard);
        }
    }
    rule(tensors <= MAX_TENSORS, "E_SHARD", format_args!("{} tensors", tensors))?;
    let mut names: Vec<&[u8]> = Vec::new();
    reserve(&mut names, tensors)?;
    for shard in &shards {
        names.extend(shard.records().map(|record| shard.name_of(&record)));
    }
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]).map_or(&b""[..], |pair| pair[0]);
    let what = String::from_utf8_lossy(twice);
    rule(twice.is_empty(), "E_SHARD", format_args!("{} occurs twice", what))?;
    Ok(shards)
}

/// Section 11.
fn content_id(shards: &[Shard]) -> Result<u128> {
    let mut state = Xxh3::new()?;
    let mut before = 0;
    for shard in shards {
        for record in shard.records.chunks_exact(RECORD) {
            let mut raw = [0; RECORD];
            raw.copy_from_slice(record);
            for range in [0..4, 56..72, 80..88, 96..104, 112..120] {
                raw[range].fill(0);
            }
            if raw[6] == ALIAS {
                let target = before + u64_at(&raw, 48);
                raw[48..56].copy_from_slice(&target.to_le_bytes());
            }
            state.update(&raw);
        }
        before += shard.tensor_count();
    }
    for shard in shards {
        shard.records().for_each(|record| state.update(shard.name_of(&record)));
    }
    for shard in shards {
        let section = shard.section(b"CHNK");
        scan(&open_file(&shard.path)?, section.offset, section.size, 8, |piece| {
            state.update(piece);
            Ok(())
        })?;
    }
    Ok(state.digest())
}

// ---- command line ----

fn write_hex(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.write_all(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])?;
    }
    Ok(())
}

/// Bytes of dense and auxiliary tensors, binary32 of grouped-affine ones.
fn write_values(out: &mut impl Write, chunks: &mut Chunks, record: &Record) -> Result<()> {
    if record.kind == GROUPED {
        return Grouped::new(record)
            .values(chunks, |value| write_hex(out, &value.to_bits().to_le_bytes()));
    }
    let mut bytes = Vec::new();
    for index in 0..ceil_div(record.parts[0].size, CHUNK) {
        chunks.read(record.parts[0], index, &mut bytes)?;
        write_hex(out, &bytes)?;
    }
    Ok(())
}

/// One line for each tensor: name, kind, dtype, shape, what its kind has besides, values.
fn write_tensors(out: &mut impl Write, shard: &Shard, with_values: bool) -> Result<()> {
    let mut chunks = Chunks::new(shard)?;
    for record in shard.records() {
        let name = String::from_utf8_lossy(shard.name_of(&record));
        let shape: Vec<String> = record.dims[..record.rank].iter().map(u64::to_string).collect();
        let kind = KINDS[usize::from(record.kind)];
        let dtype = DTYPES[usize::from(record.dtype)];
        write!(out, "tensor {} {} {} {}", name, kind, dtype, shape.join("x"))?;
        if record.kind == GROUPED {
            let scales = DTYPES[usize::from(record.scale_dtype)];
            write!(out, " bits={} group={} scales={}", record.bits, record.group, scales)?;
            write!(out, " zeros={} outliers={}", record.zero_mode, record.outliers)?;
        }
        let mut holder = record;
        if holder.kind == ALIAS {
            if let Some(target) = shard.record(holder.outliers) {
                write!(out, " of={}", String::from_utf8_lossy(shard.name_of(&target)))?;
                holder = target;
            }
        }
        if with_values {
            write!(out, " ")?;
            write_values(out, &mut chunks, &holder)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// META and the verbatim files, which the first shard has.
fn write_texts(out: &mut impl Write, shard: &Shard, with_values: bool) -> Result<()> {
    let file = open_file(&shard.path)?;
    for section in std::iter::once(&shard.section(b"META")).chain(shard.files()) {
        if section.kind == *b"META" {
            write!(out, "meta {}", section.size)?;
        } else {
            let name = shard.name(section.aux & 0xFFFF_FFFF, section.aux >> 32);
            write!(out, "file {} {}", String::from_utf8_lossy(name), section.size)?;
        }
        if with_values {
            write!(out, " ")?;
            scan(&file, section.offset, section.size, 1, |piece| write_hex(out, piece))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn run(path: &Path, with_values: bool) -> Result<()> {
    let shards = open_set(path)?;
    verify(&shards)?;
    let mut out = BufWriter::new(io::stdout());
    if let Some(first) = shards.first() {
        writeln!(out, "root {:032x}", first.root)?;
        writeln!(out, "content_id {:032x}", content_id(&shards)?)?;
        write_texts(&mut out, first, with_values)?;
    }
    for shard in &shards {
        write_tensors(&mut out, shard, with_values)?;
    }
    writeln!(out, "OK")?;
    Ok(out.flush()?)
}

/// Exit codes: 0 valid, 1 a rule is broken, 2 the system failed.
fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (with_values, path) = match &arguments[..] {
        [path] => (false, path),
        [option, path] if option == "--values" => (true, path),
        _ => {
            let _ = writeln!(io::stderr(), "usage: ingot_reader [--values] FILE");
            return ExitCode::from(2);
        }
    };
    match run(Path::new(path), with_values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{} {}", failure.code, failure.text);
            let of_system = ["E_NOT_FOUND", "E_IO", "E_NO_MEMORY"].contains(&failure.code);
            ExitCode::from(if of_system { 2 } else { 1 })
        }
    }
}
