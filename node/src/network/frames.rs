//! Frames of a stream: a length in four little-endian bytes, then as many bytes. The limit is checked before anything is
//! read, and memory grows with what arrives, not with what is claimed.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hdd_protocol::{decode, encode};
use serde::{Serialize, de::DeserializeOwned};
use std::io;

/// Sends one frame.
pub(super) async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(invalid)?;
    io.write_all(&length.to_le_bytes()).await?;
    io.write_all(bytes).await
}

/// Reads one frame of at most `limit` bytes.
pub(super) async fn read(io: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        return Err(invalid(format!("a frame of {length} bytes, at most {limit} are allowed")));
    }
    let mut bytes = Vec::with_capacity(length.min(1 << 16));
    io.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

/// Sends `value` as a frame and flushes.
pub(super) async fn send<T: Serialize>(io: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    write(io, &encode(value).map_err(invalid)?).await?;
    io.flush().await
}

/// Reads a frame as a value of at most `limit` bytes.
pub(super) async fn receive<T: Serialize + DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
    what: &'static str,
    limit: usize,
) -> io::Result<T> {
    decode(what, &read(io, limit).await?, limit).map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;

    #[tokio::test]
    async fn frames_arrive_as_sent_and_hostile_ones_are_errors() {
        let mut sent = Vec::new();
        send(&mut sent, &"a prompt".to_owned()).await.unwrap();
        write(&mut sent, b"").await.unwrap();
        let mut io = Cursor::new(sent);
        assert_eq!(receive::<String>(&mut io, "text", 64).await.unwrap(), "a prompt");
        assert_eq!(read(&mut io, 64).await.unwrap(), b"");

        for (bytes, kind) in [
            (&[65, 0, 0, 0][..], io::ErrorKind::InvalidData), // over the limit, refused before its content
            (&[255, 255, 255, 255], io::ErrorKind::InvalidData), // 4 GiB
            (&[4, 0, 0, 0, 1], io::ErrorKind::UnexpectedEof), // truncated content
            (&[4, 0], io::ErrorKind::UnexpectedEof),          // truncated length
            (&[3, 0, 0, 0, 1, b'a', 0], io::ErrorKind::InvalidData), // not canonical
        ] {
            let error = receive::<String>(&mut Cursor::new(bytes), "text", 64).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{bytes:?}: {error}");
        }
    }
}
