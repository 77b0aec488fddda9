//! XXH3 of libxxhash and the decoder of libzstd: all that is not safe Rust.
#![allow(unsafe_code)]

use crate::base::{Failure, Result};
use std::os::raw::{c_int, c_uint, c_void};

/// XXH128_hash_t.
#[repr(C)]
struct Hash128 {
    low: u64,
    high: u64,
}

#[link(name = "xxhash")]
extern "C" {
    fn XXH3_64bits(input: *const u8, length: usize) -> u64;
    fn XXH3_createState() -> *mut c_void;
    fn XXH3_freeState(state: *mut c_void) -> c_int;
    fn XXH3_128bits_reset(state: *mut c_void) -> c_int;
    fn XXH3_128bits_update(state: *mut c_void, input: *const u8, length: usize) -> c_int;
    fn XXH3_128bits_digest(state: *const c_void) -> Hash128;
}

#[link(name = "zstd")]
extern "C" {
    fn ZSTD_createDCtx() -> *mut c_void;
    fn ZSTD_freeDCtx(context: *mut c_void) -> usize;
    fn ZSTD_getFrameContentSize(source: *const u8, length: usize) -> u64;
    fn ZSTD_findFrameCompressedSize(source: *const u8, length: usize) -> usize;
    fn ZSTD_getDictID_fromFrame(source: *const u8, length: usize) -> c_uint;
    fn ZSTD_decompressDCtx(
        context: *mut c_void,
        target: *mut u8,
        capacity: usize,
        source: *const u8,
        length: usize,
    ) -> usize;
}

fn allocated(state: *mut c_void) -> Result<*mut c_void> {
    if state.is_null() {
        return Err(Failure { code: "E_NO_MEMORY", text: "state of a library".to_string() });
    }
    Ok(state)
}

pub fn xxh3_64(bytes: &[u8]) -> u64 {
    unsafe { XXH3_64bits(bytes.as_ptr(), bytes.len()) }
}

/// XXH3-128 of bytes that come in pieces.
pub struct Xxh3(*mut c_void);

impl Xxh3 {
    pub fn new() -> Result<Xxh3> {
        let state = Xxh3(allocated(unsafe { XXH3_createState() })?);
        unsafe { XXH3_128bits_reset(state.0) };
        Ok(state)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        unsafe { XXH3_128bits_update(self.0, bytes.as_ptr(), bytes.len()) };
    }

    pub fn digest(&self) -> u128 {
        let hash = unsafe { XXH3_128bits_digest(self.0) };
        u128::from(hash.high) << 64 | u128::from(hash.low)
    }
}

impl Drop for Xxh3 {
    fn drop(&mut self) {
        unsafe { XXH3_freeState(self.0) };
    }
}

pub struct Zstd(*mut c_void);

impl Zstd {
    pub fn new() -> Result<Zstd> {
        Ok(Zstd(allocated(unsafe { ZSTD_createDCtx() })?))
    }

    /// Does `stored` decode to as many bytes as `out` has, as section 10 says?  The window is
    /// looked at here because libraries may change their limit; the magic because they may
    /// know skippable and older frames.
    pub fn decode(&mut self, stored: &[u8], out: &mut [u8]) -> bool {
        const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
        if stored.len() < 6 || stored[..4] != MAGIC {
            return false;
        }
        let single_segment = stored[4] & 0x20 != 0;
        if !single_segment && 10 + u32::from(stored[5] >> 3) >= 32 {
            return false;
        }
        let (source, length) = (stored.as_ptr(), stored.len());
        unsafe {
            ZSTD_getFrameContentSize(source, length) == out.len() as u64
                && ZSTD_getDictID_fromFrame(source, length) == 0
                && ZSTD_findFrameCompressedSize(source, length) == length
                && ZSTD_decompressDCtx(self.0, out.as_mut_ptr(), out.len(), source, length)
                    == out.len()
        }
    }
}

impl Drop for Zstd {
    fn drop(&mut self) {
        unsafe { ZSTD_freeDCtx(self.0) };
    }
}
