package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// pause is the name of the image of pods' sandboxes.
const pause = "localhost/podway/pause:1"

// file is one entry of an archive.
type file struct {
	name string
	mode int64
	data []byte
}

// writeImage writes an OCI image that consists of busybox alone, asleep: what keeps a sandbox's namespaces alive.
func writeImage(path, busybox string) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	layer, err := archive([]file{{"bin/busybox", 0o755, program}})
	if err != nil {
		return err
	}
	blobs := []file{}
	blob := func(kind string, data []byte) map[string]any {
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		blobs = append(blobs, file{"blobs/sha256/" + sum, 0o644, data})
		return map[string]any{"mediaType": kind, "digest": "sha256:" + sum, "size": len(data)}
	}
	text := func(value any) []byte {
		data, encodeErr := json.Marshal(value)
		if encodeErr != nil {
			err = encodeErr
		}
		return data
	}
	const vendor = "application/vnd.oci.image."
	layers := blob(vendor+"layer.v1.tar", layer)
	config := blob(vendor+"config.v1+json", text(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/bin/busybox", "sleep", "1000000"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layers["digest"]}},
	}))
	manifest := blob(vendor+"manifest.v1+json", text(map[string]any{
		"schemaVersion": 2, "mediaType": vendor + "manifest.v1+json", "config": config, "layers": []any{layers},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": pause}
	index := text(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}})
	if err != nil {
		return err
	}
	image, err := archive(append([]file{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, index},
	}, blobs...))
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}

func archive(files []file) ([]byte, error) {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, one := range files {
		header := &tar.Header{Name: one.name, Mode: one.mode, Size: int64(len(one.data)), Typeflag: tar.TypeReg}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(one.data); err != nil {
			return nil, err
		}
	}
	err := writer.Close()
	return out.Bytes(), err
}
