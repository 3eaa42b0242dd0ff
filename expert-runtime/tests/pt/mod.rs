//! Writes what `torch.save` writes: protocol 2 of pickle, a storage a file, a zip archive without compression.

use hdd_expert_runtime::weights::Named;
use std::io::{Cursor, Write as _};
use tch::Tensor;
use zip::{CompressionMethod, ZipWriter, write::FileOptions};

/// The archive of a dictionary, under the key `nested` if there is one, beside things that are no weights.
pub fn archive(tensors: &Named, nested: Option<&str>) -> Vec<u8> {
    archive_of(&pickle(tensors, nested), tensors)
}

/// An archive with this description.
pub fn archive_of(pickle: &[u8], tensors: &Named) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = FileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: String, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("dit/data.pkl".into(), pickle);
    for (i, tensor) in tensors.values().enumerate() {
        let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        entry(format!("dit/data/{i}"), &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
    zip.finish().unwrap().into_inner()
}

/// The description of a dictionary.
pub fn pickle(tensors: &Named, nested: Option<&str>) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    if let Some(key) = nested {
        out.extend(b"}q\x00("); // a dictionary, remembered and then filled
        text(&mut out, "args");
        out.extend(b"cargparse\nNamespace\nq\x01)\x81q\x02}q\x03"); // an object with a state
        text(&mut out, "lr");
        out.extend(b"G\x3f\x1a\x36\xe2\xeb\x1c\x43\x2dsb");
        text(&mut out, key);
    }
    out.extend(b"ccollections\nOrderedDict\nq\x04)Rq\x05(");
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(("); // called with the following
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        number(&mut out, tensor.numel() as i64);
        out.extend(b"tQK\x00");
        numbers(&mut out, &tensor.size());
        numbers(&mut out, &strides(tensor));
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.push(b'u');
    out.extend(b"}q\x06"); // the state dictionary's own attribute, as PyTorch adds it
    text(&mut out, "_metadata");
    out.extend(b"Nsb");
    if nested.is_some() {
        out.push(b'u');
    }
    out.push(b'.');
    out
}

fn strides(tensor: &Tensor) -> Vec<i64> {
    tensor.contiguous().stride()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn number(out: &mut Vec<u8>, n: i64) {
    out.push(b'J');
    out.extend((n as i32).to_le_bytes());
}

fn numbers(out: &mut Vec<u8>, numbers: &[i64]) {
    out.push(b'(');
    numbers.iter().for_each(|&n| number(out, n));
    out.push(b't');
}
