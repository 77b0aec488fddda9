//! What chunks hold: steps 24 to 27 of container.md, section 12, and values.

use crate::base::*;
use crate::libraries::{xxh3_64, Zstd};
use crate::shard::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

// ---- chunks: steps 24 to 26 ----

/// The chunks of an open shard.
pub struct Chunks<'a> {
    shard: &'a Shard,
    file: File,
    data: Section,
    digests: Section,
    map: Section,
    zstd: Zstd,
    stored: Vec<u8>,
}

impl<'a> Chunks<'a> {
    pub fn new(shard: &'a Shard) -> Result<Chunks<'a>> {
        Ok(Chunks {
            shard,
            file: open_file(&shard.path)?,
            data: shard.section(b"DATA"),
            digests: shard.section(b"CHNK"),
            map: shard.section(b"ZMAP"),
            zstd: Zstd::new()?,
            stored: Vec::new(),
        })
    }

    /// Chunk `index` of a part, decoded into `out`; steps 24 and 25.
    pub fn read(&mut self, part: Part, index: u64, out: &mut Vec<u8>) -> Result<()> {
        let (number, start) = (part.first_chunk + index, index * CHUNK);
        resize(out, (part.size - start).min(CHUNK))?;
        if self.shard.compressed {
            self.decode(number, out)?;
        } else {
            self.file.read_exact_at(out, self.data.offset + part.at + start)?;
        }
        let mut digest = [0; 8];
        self.file.read_exact_at(&mut digest, self.digests.offset + 8 * number)?;
        rule(xxh3_64(out) == uint(&digest), "E_CHUNK_DIGEST", format_args!("chunk {}", number))
    }

    /// Step 24.
    fn decode(&mut self, number: u64, out: &mut [u8]) -> Result<()> {
        let mut entry = [0; 24];
        self.file.read_exact_at(&mut entry, self.map.offset + 24 * number)?;
        // Within CHUNK and DATA by step 22, unless the file has changed since.
        let length = u64::from(u32_at(&entry, 8)).min(CHUNK);
        resize(&mut self.stored, length)?;
        let at = self.data.offset.saturating_add(u64_at(&entry, 0));
        self.file.read_exact_at(&mut self.stored, at)?;
        let what = format!("chunk {}", number);
        rule(xxh3_64(&self.stored) == u64_at(&entry, 16), "E_STORED_DIGEST", &what)?;
        let decodes = if u32_at(&entry, 12) == 0 {
            let whole = self.stored.len() == out.len();
            if whole {
                out.copy_from_slice(&self.stored);
            }
            whole
        } else {
            self.zstd.decode(&self.stored, out)
        };
        rule(decodes, "E_COMPRESSION", what)
    }
}

/// Step 26: the bytes from `start` of a part of a grouped-affine tensor.
fn check_values(record: &Record, part: usize, start: u64, bytes: &[u8]) -> Result<()> {
    let what = format!("in the chunk from byte {} of the part", start);
    match part {
        0 => rule(padding_is_zero(record, start, bytes), "E_CODE_PADDING", what),
        1 => {
            let size = DTYPE_SIZES[usize::from(record.scale_dtype)];
            let legal = bytes
                .chunks_exact(size as usize)
                .all(|raw| scale_is_legal(record.scale_dtype, uint(raw)));
            rule(legal, "E_SCALE", what)
        }
        2 => rule(bytes.iter().all(|z| u64::from(*z) >> record.bits == 0), "E_ZERO_POINT", what),
        _ => Ok(()),
    }
}

/// quantization.md, section 1.
fn padding_is_zero(record: &Record, start: u64, bytes: &[u8]) -> bool {
    let (stride, row_bits) = (record.stride(), record.columns() * record.bits);
    let end = start + bytes.len() as u64;
    let mut row = start / stride * stride;
    while row < end {
        let first = row + row_bits / 8;
        for at in first.max(start)..(row + stride).min(end) {
            let byte = bytes[(at - start) as usize];
            let padding = if at == first { byte >> (row_bits % 8) } else { byte };
            if padding != 0 {
                return false;
            }
        }
        row += stride;
    }
    true
}

/// quantization.md, section 2: magnitudes in the order of their bits.
fn scale_is_legal(dtype: u8, bits: u64) -> bool {
    let (least, greatest, sign) = match dtype {
        F32 => (27 << 23, 227 << 23, 1 << 31),
        F16 => (1, 30 << 10, 1 << 15),
        _ => (27 << 7, 227 << 7, 1 << 15),
    };
    let magnitude = bits & (sign - 1);
    magnitude == 0 || (least..=greatest).contains(&magnitude)
}

// ---- values (quantization.md) ----

/// Bytes of one part by their place in it; holds the chunk that was asked for last.
struct Bytes {
    part: Part,
    held: Option<u64>,
    chunk: Vec<u8>,
}

impl Bytes {
    fn new(part: Part) -> Bytes {
        Bytes { part, held: None, chunk: Vec::new() }
    }

    fn byte(&mut self, chunks: &mut Chunks, at: u64) -> Result<u8> {
        rule(at < self.part.size, "E_OUTLIER", "outliers beyond their part")?;
        if self.held != Some(at / CHUNK) {
            self.held = None;
            chunks.read(self.part, at / CHUNK, &mut self.chunk)?;
            self.held = Some(at / CHUNK);
        }
        Ok(self.chunk[(at % CHUNK) as usize])
    }

    fn uint(&mut self, chunks: &mut Chunks, at: u64, size: u64) -> Result<u64> {
        (0..size).try_fold(0, |value, i| {
            Ok(value | u64::from(self.byte(chunks, at.saturating_add(i))?) << (8 * i))
        })
    }
}

/// A binary16 or binary32 number, or a BF16 one, as a binary32.
fn float(dtype: u8, bits: u32) -> f32 {
    match dtype {
        F32 => f32::from_bits(bits),
        F16 => {
            let (sign, exponent, fraction) = (bits >> 15 << 31, bits >> 10 & 31, bits & 0x3FF);
            let magnitude = match exponent {
                0 => (fraction as f32 / (1 << 24) as f32).to_bits(),
                31 => 0xFF << 23 | fraction << 13,
                _ => (exponent + 112) << 23 | fraction << 13,
            };
            f32::from_bits(sign | magnitude)
        }
        _ => f32::from_bits(bits << 16),
    }
}

/// A grouped-affine tensor, element by element.  Each field has a place of its own in its part, so
/// that a walk in rising order reads every chunk once.
pub struct Grouped<'a> {
    record: &'a Record,
    codes: Bytes,
    scales: Bytes,
    zeros: Bytes,
    row_ends: Bytes,
    columns: Bytes,
    values: Bytes,
}

impl<'a> Grouped<'a> {
    pub fn new(record: &'a Record) -> Grouped<'a> {
        let [codes, scales, zeros, row_ends, columns, values] =
            [0, 1, 2, 3, 3, 3].map(|part| Bytes::new(record.parts[part]));
        Grouped { record, codes, scales, zeros, row_ends, columns, values }
    }

    fn code(&mut self, chunks: &mut Chunks, n: u64, k: u64) -> Result<u32> {
        let (bits, bit) = (self.record.bits, k * self.record.bits);
        let at = n * self.record.stride() + bit / 8;
        // Up to 8 bits from bit 0..7 of a byte: the next one counts only if they reach it.
        let size = if bit % 8 + bits > 8 { 2 } else { 1 };
        let pair = self.codes.uint(chunks, at, size)?;
        Ok((pair >> (bit % 8)) as u32 & ((1 << bits) - 1))
    }

    fn zero(&mut self, chunks: &mut Chunks, n: u64, k: u64) -> Result<u32> {
        if self.record.zero_mode == 0 {
            return Ok(1 << (self.record.bits - 1));
        }
        let at = n * self.record.groups() + k / self.record.group;
        Ok(u32::from(self.zeros.byte(chunks, at)?))
    }

    /// quantization.md, section 4: one rounding, that of the product.
    fn weight(&mut self, chunks: &mut Chunks, n: u64, k: u64) -> Result<f32> {
        let size = DTYPE_SIZES[usize::from(self.record.scale_dtype)];
        let at = (n * self.record.groups() + k / self.record.group) * size;
        let scale = float(self.record.scale_dtype, self.scales.uint(chunks, at, size)? as u32);
        let (code, zero) = (self.code(chunks, n, k)?, self.zero(chunks, n, k)?);
        Ok(scale * (code as i32 - zero as i32) as f32)
    }

    /// row_ptr[n].
    fn row_end(&mut self, chunks: &mut Chunks, n: u64) -> Result<u64> {
        self.row_ends.uint(chunks, 8 * n, 8)
    }

    /// Column and value of outlier i.
    fn outlier(&mut self, chunks: &mut Chunks, i: u64) -> Result<(u64, f32)> {
        let (columns_at, values_at, _) = self.record.outlier_places();
        let size = DTYPE_SIZES[usize::from(self.record.dtype)];
        let column =
            self.columns.uint(chunks, columns_at.saturating_add(i.saturating_mul(4)), 4)?;
        let bits =
            self.values.uint(chunks, values_at.saturating_add(i.saturating_mul(size)), size)?;
        Ok((column, float(self.record.dtype, bits as u32)))
    }

    /// Step 27 (quantization.md, section 5).
    fn check_outliers(&mut self, chunks: &mut Chunks) -> Result<()> {
        let (n, k, count) = (self.record.rows(), self.record.columns(), self.record.outliers);
        let mut start = self.row_end(chunks, 0)?;
        rule(start == 0, "E_OUTLIER", "row 0")?;
        for row in 0..n {
            let end = self.row_end(chunks, row + 1)?;
            rule(start <= end && end <= count, "E_OUTLIER", format_args!("row {}", row))?;
            let mut least = 0;
            for i in start..end {
                let (column, value) = self.outlier(chunks, i)?;
                let legal = (least..k).contains(&column)
                    && value.is_finite()
                    && self.code(chunks, row, column)? == self.zero(chunks, row, column)?;
                rule(legal, "E_OUTLIER", format_args!("row {}", row))?;
                least = column + 1;
            }
            start = end;
        }
        rule(start == count, "E_OUTLIER", "last row")?;
        let (_, values_at, columns_end) = self.record.outlier_places();
        let gap = self.columns.uint(chunks, columns_end, values_at - columns_end)?;
        rule(gap == 0, "E_OUTLIER", "behind the columns")
    }

    /// Calls `each` with every value, row by row.
    pub fn values(
        &mut self,
        chunks: &mut Chunks,
        mut each: impl FnMut(f32) -> Result<()>,
    ) -> Result<()> {
        let (mut i, mut next) = (0, None);
        for row in 0..self.record.rows() {
            let end = if self.record.outliers > 0 { self.row_end(chunks, row + 1)? } else { 0 };
            for column in 0..self.record.columns() {
                if next.is_none() && i < end {
                    next = Some(self.outlier(chunks, i)?);
                }
                match next {
                    Some((place, value)) if place == column => {
                        each(value)?;
                        (i, next) = (i + 1, None);
                    }
                    _ => each(self.weight(chunks, row, column)?)?,
                }
            }
        }
        Ok(())
    }
}

// ---- the whole of it ----

/// "Full" of section 12: every byte of DATA, of all shards.
pub fn verify(shards: &[Shard]) -> Result<()> {
    for shard in shards {
        verify_parts(shard).map_err(|failure| in_file(&shard.path, failure))?;
    }
    for shard in shards {
        let mut chunks = Chunks::new(shard)?;
        for record in shard.records().filter(|r| r.kind == GROUPED && r.outliers > 0) {
            Grouped::new(&record)
                .check_outliers(&mut chunks)
                .map_err(|failure| in_file(&shard.path, in_tensor(shard, &record, failure)))?;
        }
    }
    Ok(())
}

fn verify_parts(shard: &Shard) -> Result<()> {
    let (mut chunks, mut bytes, mut end) = (Chunks::new(shard)?, Vec::new(), 0);
    for record in shard.records() {
        for (number, part) in record.parts.iter().enumerate().filter(|(_, part)| part.size > 0) {
            let check = |start: u64, bytes: &[u8]| match record.kind {
                GROUPED => check_values(&record, number, start, bytes),
                _ => Ok(()),
            };
            let data = chunks.data.offset;
            if !shard.compressed {
                check_zeros(&chunks.file, data + end, data + part.at, "E_DATA_GAP")?;
            }
            for index in 0..ceil_div(part.size, CHUNK) {
                chunks
                    .read(*part, index, &mut bytes)
                    .and_then(|()| check(index * CHUNK, &bytes))
                    .map_err(|failure| in_tensor(shard, &record, failure))?;
            }
            end = part.at + part.size;
        }
    }
    Ok(())
}

fn in_tensor(shard: &Shard, record: &Record, failure: Failure) -> Failure {
    let name = String::from_utf8_lossy(shard.name_of(record));
    Failure { code: failure.code, text: format!("{}: {}", name, failure.text) }
}
