//! One file: steps 1 to 22 of container.md, section 12.

use crate::base::*;
use crate::libraries::{xxh3_64, Xxh3};
use std::fs::File;
use std::path::{Path, PathBuf};

const MAX_BYTES: u64 = 1 << 48;
pub const MAX_TENSORS: u64 = 1 << 20;
const MAX_SECTION: u64 = 256 << 20;
const TRAILER: u64 = 32;
pub const RECORD: usize = 160;
/// Known sections in their order in the file (section 2).
const ORDER: [&[u8; 4]; 10] =
    [b"TIDX", b"TSRT", b"NAME", b"CHNK", b"LEDG", b"META", b"FILE", b"SHRD", b"ZMAP", b"DATA"];
/// Kinds and dtypes (section 5).
const DENSE: u8 = 0;
pub const GROUPED: u8 = 1;
pub const ALIAS: u8 = 2;
const AUXILIARY: u8 = 3;
pub const KINDS: [&str; 4] = ["dense", "grouped", "alias", "auxiliary"];
pub const F32: u8 = 0;
pub const F16: u8 = 1;
pub const DTYPES: [&str; 5] = ["F32", "F16", "BF16", "I32", "U8"];
pub const DTYPE_SIZES: [u64; 5] = [4, 2, 2, 4, 1];

// ---- tensor records (section 5; sizes: quantization.md, section 6) ----

#[derive(Clone, Copy)]
pub struct Part {
    pub at: u64,
    pub size: u64,
    pub first_chunk: u64,
}

pub struct Record {
    pub name_at: u64,
    pub name_length: u64,
    pub kind: u8,
    pub rank: usize,
    pub dims: [u64; 4],
    pub dtype: u8,
    pub bits: u64,
    pub scale_dtype: u8,
    pub zero_mode: u8,
    pub group: u64,
    pub outliers: u64,
    pub first_chunk: u64,
    pub parts: [Part; 4],
    pub reserved_is_zero: bool,
}

impl Record {
    fn parse(raw: &[u8]) -> Record {
        let mut record = Record {
            name_at: uint(&raw[0..4]),
            name_length: uint(&raw[4..6]),
            kind: raw[6],
            rank: usize::from(raw[7]),
            dims: [8, 16, 24, 32].map(|at| u64_at(raw, at)),
            dtype: raw[40],
            bits: u64::from(raw[41]),
            scale_dtype: raw[42],
            zero_mode: raw[43],
            group: uint(&raw[44..48]),
            outliers: u64_at(raw, 48),
            first_chunk: u64_at(raw, 56),
            parts: [64, 80, 96, 112].map(|at| Part {
                at: u64_at(raw, at),
                size: u64_at(raw, at + 8),
                first_chunk: 0,
            }),
            reserved_is_zero: all_zero(&raw[128..160]),
        };
        // Meaningless, and never used, until step 18 has passed.
        let mut chunk = record.first_chunk;
        for part in &mut record.parts {
            part.first_chunk = chunk;
            chunk = chunk.saturating_add(ceil_div(part.size, CHUNK));
        }
        record
    }

    /// Of a legal shape, as the functions below it.
    pub fn columns(&self) -> u64 {
        self.dims[self.rank - 1]
    }

    pub fn rows(&self) -> u64 {
        self.dims[..self.rank - 1].iter().product()
    }

    pub fn groups(&self) -> u64 {
        ceil_div(self.columns(), self.group)
    }

    pub fn stride(&self) -> u64 {
        align(ceil_div(self.columns() * self.bits, 8), 16)
    }

    /// Where the columns and the values of the outliers start in part 3, and where the columns end.
    pub fn outlier_places(&self) -> (u64, u64, u64) {
        let columns = 8 * (self.rows() + 1);
        let end = columns + 4 * self.outliers;
        (columns, align(end, 8), end)
    }

    fn shape_is_legal(&self) -> bool {
        (1..=4).contains(&self.rank)
            && self.dims[self.rank..].iter().all(|dim| *dim == 0)
            && self.dims.iter().fold(1u64, |p, dim| p.saturating_mul(*dim.max(&1))) <= MAX_BYTES
    }

    /// Step 17.
    fn is_legal(&self) -> bool {
        if !self.shape_is_legal() || !self.reserved_is_zero {
            return false;
        }
        let not_quantized = self.bits == 0
            && self.scale_dtype == 0
            && self.zero_mode == 0
            && self.group == 0
            && self.outliers == 0;
        let (n, k) = (self.rows(), self.columns());
        match self.kind {
            DENSE => usize::from(self.dtype) < DTYPES.len() && not_quantized,
            GROUPED => {
                n >= 1
                    && (1..=u64::from(u32::MAX)).contains(&k)
                    && (2..=8).contains(&self.bits)
                    && self.scale_dtype <= 2
                    && self.zero_mode <= 1
                    && (1..=k).contains(&self.group)
                    && (self.group % 8 == 0 || self.group == k)
                    && self.outliers <= n * k
                    && (self.dtype == F16 || (self.dtype == F32 && self.outliers > 0))
            }
            ALIAS => true,
            AUXILIARY => self.dtype == F32 && not_quantized,
            _ => false,
        }
    }

    /// Of a legal record; each is at most 2^53.
    fn part_sizes(&self) -> [u64; 4] {
        let n = self.rows();
        match self.kind {
            GROUPED => {
                let scales = n * self.groups();
                let value_size = DTYPE_SIZES[usize::from(self.dtype)];
                [
                    n * self.stride(),
                    scales * DTYPE_SIZES[usize::from(self.scale_dtype)],
                    if self.zero_mode == 1 { scales } else { 0 },
                    if self.outliers > 0 {
                        self.outlier_places().1 + self.outliers * value_size
                    } else {
                        0
                    },
                ]
            }
            ALIAS => [0; 4],
            _ => [n * self.columns() * DTYPE_SIZES[usize::from(self.dtype)], 0, 0, 0],
        }
    }

    /// What an alias repeats.
    fn settings(&self) -> (usize, [u64; 4], u8, u64, u8, u8, u64) {
        (self.rank, self.dims, self.dtype, self.bits, self.scale_dtype, self.zero_mode, self.group)
    }
}

// ---- sections and tables ----

#[derive(Clone, Copy, Default)]
pub struct Section {
    pub kind: [u8; 4],
    pub flags: u32,
    pub offset: u64,
    pub size: u64,
    pub aux: u64,
    pub digest: u128,
}

pub struct Shard {
    pub path: PathBuf,
    pub file_size: u64,
    pub compressed: bool,
    pub profile: u32,
    pub index: u32,
    pub count: u32,
    pub set_id: u128,
    pub root: u128,
    pub section_count: u64,
    pub sections: Vec<Section>,
    pub records: Vec<u8>,
    pub names: Vec<u8>,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Shard> {
        Shard::open_unnamed(path).map_err(|failure| in_file(path, failure))
    }

    fn open_unnamed(path: &Path) -> Result<Shard> {
        let file = open_file(path)?;
        let mut shard = Shard::superblock(&file, path)?;
        shard.read_sections(&file)?;
        shard.check_order()?;
        shard.check_bounds()?;
        shard.check_sizes()?;
        shard.check_digests(&file)?;
        let (records, names) = (shard.section(b"TIDX"), shard.section(b"NAME"));
        shard.records = read(&file, records.offset, records.size)?;
        shard.names = read(&file, names.offset, names.size)?;
        shard.check_names()?;
        shard.check_records()?;
        shard.check_geometry()?;
        shard.check_aliases()?;
        shard.check_sort(&file)?;
        shard.check_ledger(&file)?;
        shard.check_stored_chunks(&file)?;
        Ok(shard)
    }

    /// The section of a type that step 11 found once; an empty one for a type that is not there.
    pub fn section(&self, kind: &[u8; 4]) -> Section {
        self.sections.iter().find(|section| section.kind == *kind).copied().unwrap_or_default()
    }

    pub fn files(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(|section| section.kind == *b"FILE")
    }

    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.records.chunks_exact(RECORD).map(Record::parse)
    }

    pub fn tensor_count(&self) -> u64 {
        (self.records.len() / RECORD) as u64
    }

    /// The record of that number.
    pub fn record(&self, number: u64) -> Option<Record> {
        let number = usize::try_from(number).ok()?;
        self.records.chunks_exact(RECORD).nth(number).map(Record::parse)
    }

    /// Of a name that step 16 has passed.
    pub fn name(&self, at: u64, length: u64) -> &[u8] {
        &self.names[at as usize..(at + length) as usize]
    }

    pub fn name_of(&self, record: &Record) -> &[u8] {
        self.name(record.name_at, record.name_length)
    }

    /// Steps 1 to 8.
    fn superblock(file: &File, path: &Path) -> Result<Shard> {
        let size = file.metadata()?.len();
        rule(size >= 160, "E_TOO_SHORT", format_args!("{} bytes", size))?;
        let raw = read(file, 0, 128)?;
        rule(raw[..8] == *b"\x89IGT\r\n\x1a\n", "E_MAGIC", "not an Ingot container")?;
        let digest = u64_at(&raw, 120);
        rule(xxh3_64(&raw[..120]) == digest, "E_SUPERBLOCK_DIGEST", "superblock")?;
        let version = uint(&raw[8..10]);
        rule(version == 1, "E_VERSION", format_args!("version {}", version))?;
        let incompat = u64_at(&raw, 24);
        rule(incompat <= 1, "E_INCOMPAT", format_args!("feature mask {:x}", incompat))?;
        let [profile, index, count] = [60, 64, 68].map(|at| u32_at(&raw, at));
        let file_size = u64_at(&raw, 16);
        let legal = u32_at(&raw, 12) == 128
            && u64_at(&raw, 48) == 128
            && u32_at(&raw, 56) <= 64
            && profile <= 2
            && (1..=9999).contains(&count)
            && index < count
            && file_size <= MAX_BYTES
            && all_zero(&raw[104..120]);
        rule(legal, "E_SUPERBLOCK", "superblock")?;
        rule(file_size == size, "E_FILE_SIZE", format_args!("{} of {} bytes", size, file_size))?;
        let root = u128_at(&raw, 88);
        let trailer = read(file, size - TRAILER, TRAILER)?;
        let matches = u128_at(&trailer, 0) == root
            && u64_at(&trailer, 16) == file_size
            && trailer[24..] == *b"IGTEND\r\n";
        rule(matches, "E_TRAILER", "trailer")?;
        Ok(Shard {
            path: path.to_path_buf(),
            file_size,
            compressed: incompat == 1,
            profile,
            index,
            count,
            set_id: u128_at(&raw, 72),
            root,
            section_count: u64::from(u32_at(&raw, 56)),
            sections: Vec::new(),
            records: Vec::new(),
            names: Vec::new(),
        })
    }

    /// Steps 9 and 10.
    fn read_sections(&mut self, file: &File) -> Result<()> {
        let size = 48 * self.section_count;
        rule(128 + size + TRAILER <= self.file_size, "E_TABLE", "section table")?;
        let raw = read(file, 128, size)?;
        let mut state = Xxh3::new()?;
        state.update(&raw);
        rule(state.digest() == self.root, "E_ROOT", "section table")?;
        self.sections = raw
            .chunks_exact(48)
            .map(|raw| Section {
                kind: [raw[0], raw[1], raw[2], raw[3]],
                flags: u32_at(raw, 4),
                offset: u64_at(raw, 8),
                size: u64_at(raw, 16),
                aux: u64_at(raw, 24),
                digest: u128_at(raw, 32),
            })
            .collect();
        Ok(())
    }

    /// Step 11.
    fn check_order(&self) -> Result<()> {
        let (mut next, mut found) = (0, [0u64; ORDER.len()]);
        for (number, section) in self.sections.iter().enumerate() {
            let what = format!("section {}", number);
            match ORDER.iter().position(|kind| **kind == section.kind) {
                None => rule(section.flags & 1 == 0, "E_CRITICAL_SECTION", what)?,
                Some(place) => {
                    rule(place >= next && section.flags == 1, "E_SECTION_ORDER", what)?;
                    next = if section.kind == *b"FILE" { place } else { place + 1 };
                    found[place] += 1;
                }
            }
        }
        for (kind, found) in ORDER.iter().zip(found) {
            let legal = match *kind {
                b"FILE" => self.index == 0 || found == 0,
                b"SHRD" => found == u64::from(self.count > 1 && self.index == 0),
                b"ZMAP" => found == u64::from(self.compressed),
                _ => found == 1,
            };
            let name = String::from_utf8_lossy(&kind[..]);
            rule(legal, "E_SECTION_ORDER", format_args!("{} {}", found, name))?;
        }
        let last = self.sections.last().map_or(false, |section| section.kind == *b"DATA");
        rule(last, "E_SECTION_ORDER", "DATA is not the last section")
    }

    /// Step 12.
    fn check_bounds(&self) -> Result<()> {
        let limit = self.file_size - TRAILER;
        let mut end = 128 + 48 * self.section_count;
        for (number, section) in self.sections.iter().enumerate() {
            let at = align(end, if section.kind == *b"DATA" { 4096 } else { 8 });
            let fits = section.offset == at && at <= limit && section.size <= limit - at;
            rule(fits, "E_SECTION_BOUNDS", format_args!("section {}", number))?;
            end = at + section.size;
        }
        rule(align(end, 8) == limit, "E_SECTION_BOUNDS", "trailer")
    }

    /// Step 13.
    fn check_sizes(&self) -> Result<()> {
        let tensors = self.section(b"TIDX").size / RECORD as u64;
        let chunks = self.section(b"CHNK").size / 8;
        for (number, section) in self.sections.iter().enumerate() {
            let (size, no_aux) = (section.size, section.aux == 0);
            let legal = match &section.kind {
                b"TIDX" => size == RECORD as u64 * tensors && tensors <= MAX_TENSORS && no_aux,
                b"TSRT" => size == 4 * tensors && no_aux,
                b"NAME" => size <= MAX_SECTION && no_aux,
                b"CHNK" => size == 8 * chunks && no_aux,
                b"LEDG" => size == 128 * tensors && no_aux,
                b"META" => size <= 16 << 20 && no_aux,
                b"SHRD" => size == 16 * u64::from(self.count - 1) && no_aux,
                b"ZMAP" => size == 24 * chunks && no_aux,
                b"DATA" => section.aux <= MAX_BYTES && (self.compressed || size == section.aux),
                _ => size <= MAX_SECTION,
            };
            rule(legal, "E_SECTION_SIZE", format_args!("section {}", number))?;
        }
        Ok(())
    }

    /// Steps 14 and 15.
    fn check_digests(&self, file: &File) -> Result<()> {
        for (number, section) in self.sections.iter().enumerate() {
            let mut digest = 0;
            if section.kind != *b"DATA" {
                let mut state = Xxh3::new()?;
                scan(file, section.offset, section.size, 1, |piece| {
                    state.update(piece);
                    Ok(())
                })?;
                digest = state.digest();
            }
            let what = format!("section {}", number);
            rule(digest == section.digest, "E_SECTION_DIGEST", what)?;
        }
        let mut end = 128 + 48 * self.section_count;
        for section in &self.sections {
            check_zeros(file, end, section.offset, "E_GAP")?;
            end = section.offset + section.size;
        }
        check_zeros(file, end, self.file_size - TRAILER, "E_GAP")
    }

    /// Step 16.
    fn check_names(&self) -> Result<()> {
        let total = self.names.len() as u64;
        let mut end = 0;
        for (number, record) in self.records().enumerate() {
            let (at, length) = (record.name_at, record.name_length);
            let legal = at == end
                && (1..=255).contains(&length)
                && at + length <= total
                && self.name(at, length).iter().all(|c| (0x21..=0x7E).contains(c));
            rule(legal, "E_NAME", format_args!("record {}", number))?;
            end = at + length;
        }
        let mut before: &[u8] = b"";
        for (number, section) in self.files().enumerate() {
            let (at, length) = (section.aux & 0xFFFF_FFFF, section.aux >> 32);
            let placed = at == end && (1..=255).contains(&length) && at + length <= total;
            rule(placed, "E_NAME", format_args!("file {}", number))?;
            let name = self.name(at, length);
            let legal = name[0] != b'.'
                && name.iter().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(c))
                && name > before;
            rule(legal, "E_NAME", format_args!("file {}", number))?;
            (before, end) = (name, at + length);
        }
        rule(end == total, "E_NAME", "bytes behind the last name")
    }

    /// Step 17.
    fn check_records(&self) -> Result<()> {
        for (number, record) in self.records().enumerate() {
            rule(record.is_legal(), "E_RECORD", format_args!("record {}", number))?;
        }
        Ok(())
    }

    /// Step 18.
    fn check_geometry(&self) -> Result<()> {
        let (mut end, mut chunks) = (0, 0);
        for (number, record) in self.records().enumerate() {
            let mut legal = record.first_chunk == chunks;
            for (part, size) in record.parts.iter().zip(record.part_sizes()) {
                let mut at = 0;
                if size > 0 {
                    at = align(end, if size >= 65_536 { 4096 } else { 256 });
                    end = at + size;
                    chunks += ceil_div(size, CHUNK);
                }
                legal = legal && part.at == at && part.size == size && end <= MAX_BYTES;
            }
            rule(legal, "E_GEOMETRY", format_args!("record {}", number))?;
        }
        let covers = 8 * chunks == self.section(b"CHNK").size && end == self.section(b"DATA").aux;
        rule(covers, "E_GEOMETRY", "chunks or image")
    }

    /// Step 19.
    fn check_aliases(&self) -> Result<()> {
        for (number, record) in self.records().enumerate().filter(|(_, r)| r.kind == ALIAS) {
            let target = self.record(record.outliers);
            let legal =
                target.map_or(false, |t| t.kind != ALIAS && t.settings() == record.settings());
            rule(legal, "E_ALIAS", format_args!("record {}", number))?;
        }
        Ok(())
    }

    /// Step 20.
    fn check_sort(&self, file: &File) -> Result<()> {
        let section = self.section(b"TSRT");
        let mut before: &[u8] = b"";
        scan(file, section.offset, section.size, 4, |piece| {
            for number in piece.chunks_exact(4).map(uint) {
                let record = self.record(number);
                let name = record.map_or(&b""[..], |record| self.name_of(&record));
                rule(name > before, "E_SORT", format_args!("at record {}", number))?;
                before = name;
            }
            Ok(())
        })
    }

    /// Step 21.
    fn check_ledger(&self, file: &File) -> Result<()> {
        let section = self.section(b"LEDG");
        let mut number = 0u64;
        // Finite with its sign bit clear, or the one NaN.
        let legal_number = |bits| bits < 0x7FF0_0000_0000_0000 || bits == 0x7FF8_0000_0000_0000;
        scan(file, section.offset, section.size, 128, |piece| {
            for raw in piece.chunks_exact(128) {
                let legal = raw[0] <= 5
                    && raw[1] <= 3
                    && raw[3] <= 1
                    && all_zero(&raw[12..16])
                    && all_zero(&raw[88..])
                    && (32..72).step_by(8).all(|at| legal_number(u64_at(raw, at)));
                rule(legal, "E_LEDGER", format_args!("record {}", number))?;
                number += 1;
            }
            Ok(())
        })
    }

    /// Step 22.
    fn check_stored_chunks(&self, file: &File) -> Result<()> {
        let map = self.section(b"ZMAP");
        let mut entries = Vec::new();
        reserve(&mut entries, map.size / 24)?;
        scan(file, map.offset, map.size, 24, |piece| {
            for raw in piece.chunks_exact(24) {
                let (at, length, codec) = (u64_at(raw, 0), u64::from(u32_at(raw, 8)), raw[12]);
                let legal = (1..=CHUNK).contains(&length) && u32_at(raw, 12) <= 1;
                rule(legal, "E_ZMAP", format_args!("length {}, codec {}", length, codec))?;
                entries.push((at, length as u32));
            }
            Ok(())
        })?;
        entries.sort_unstable();
        let mut end = 0;
        for (at, length) in entries {
            rule(at == end, "E_ZMAP", format_args!("stored byte {}", end))?;
            end += u64::from(length);
        }
        let covers = !self.compressed || end == self.section(b"DATA").size;
        rule(covers, "E_ZMAP", format_args!("stored byte {}", end))
    }
}
