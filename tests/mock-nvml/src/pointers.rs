//! The caller's pointers as argument types. Only a C caller can make one, and nvml.h obliges it to hand over null or
//! memory that fits; on that word rests every block here. They are the crate's only pointer accesses.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_uint};

use crate::types::{Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, known};

/// Where a result goes: `T *` in C.
#[repr(transparent)]
#[derive(Debug)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Null is NVML_ERROR_INVALID_ARGUMENT.
    fn check(&self) -> Answer {
        if self.0.is_null() { Err(INVALID_ARGUMENT) } else { Ok(()) }
    }

    /// Stores the result.
    pub fn set(&self, value: T) -> Answer {
        self.check()?;
        // SAFETY: not null, so by nvml.h it points to a T of the caller's. It may be uninitialized: `write` drops
        // nothing.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Stores a fact; one that is not told is NVML_ERROR_NOT_SUPPORTED.
    pub fn give(&self, fact: Option<T>) -> Answer {
        self.check()?;
        self.set(known(fact)?)
    }

    /// The `unsigned int` that a versioned struct begins with, or that an argument is.
    pub fn number(&self) -> Answer<c_uint> {
        self.check()?;
        // SAFETY: not null, so by nvml.h it points to a struct whose first field the caller has set. The others may
        // be uninitialized and are not read.
        Ok(unsafe { self.0.cast::<c_uint>().read() })
    }
}

impl<T> Out<T> {
    /// Stores as many values as there are; by nvml.h the caller has room for `count`, or says NULL and 0.
    pub fn give_list(&self, count: c_uint, values: Vec<T>) -> Answer {
        if values.len() > count as usize {
            return Err(INSUFFICIENT_SIZE);
        }
        if values.is_empty() {
            return Ok(());
        }
        self.check()?;
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: not null, so by nvml.h it points to `count` places of the caller's, and there are no more values.
            unsafe { self.0.add(at).write(value) };
        }
        Ok(())
    }
}

impl Out<c_char> {
    /// Stores a fact and its end in a buffer of `length` bytes, or says NVML_ERROR_INSUFFICIENT_SIZE.
    pub fn give_text(&self, length: c_uint, fact: Option<&str>) -> Answer {
        self.check()?;
        let text = known(fact)?;
        if text.len() >= length as usize {
            return Err(INSUFFICIENT_SIZE);
        }
        let buffer = self.0.cast::<u8>();
        // SAFETY: not null, so by nvml.h it points to `length` bytes of the caller's, and text.len() + 1 is no more.
        // The text is this library's own: the two do not overlap.
        unsafe {
            buffer.copy_from_nonoverlapping(text.as_ptr(), text.len());
            buffer.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// A string argument: `const char *` in C.
#[repr(transparent)]
#[derive(Debug)]
pub struct Text(*const c_char);

impl Text {
    /// The string; null or a string that is not UTF-8 is NVML_ERROR_INVALID_ARGUMENT.
    pub fn get(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by nvml.h it points to a string with its end, which stays as it is during the call.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| INVALID_ARGUMENT)
    }
}
