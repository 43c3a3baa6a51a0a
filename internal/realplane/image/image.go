// Package image writes container images of a few static programs and nothing
// else, as the archive that `docker load` and `ctr images import` read. It is
// for tests that have no registry; the Dockerfile makes the real image.
//
// The form is Docker's image specification v1.2: a tar with manifest.json, the
// configuration and one layer.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
)

// Image is what to write.
type Image struct {
	Reference  string            // registry.k8s.io/pause:3.10.2
	Files      map[string]string // path in the image -> file on this machine; mode 0755
	Folders    []Folder          // further folders
	Entrypoint []string
	User       string // "65532:65532"; empty: root
}

// Folder is a folder of the image.
type Folder struct {
	Path string
	Mode int64
	UID  int
	GID  int
}

// passwd makes root known by name: kubelet and some programs look it up.
const passwd = "root:x:0:0:root:/:/sbin/nologin\n"

// Write writes the image's archive to a new file. The same content gives the
// same bytes, except through the programs themselves.
func Write(file string, i Image) (err error) {
	layer, err := os.CreateTemp("", "layer")
	if err != nil {
		return fmt.Errorf("write image %s: %w", i.Reference, err)
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	hash := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, hash), i); err != nil {
		return fmt.Errorf("write image %s: %w", i.Reference, err)
	}
	if err := writeArchive(file, layer, hex.EncodeToString(hash.Sum(nil)), i); err != nil {
		return fmt.Errorf("write image %s: %w", i.Reference, err)
	}
	return nil
}

// layerWriter adds each parent folder once, before what is in it.
type layerWriter struct {
	tar  *tar.Writer
	made map[string]bool
}

func writeLayer(w io.Writer, i Image) error {
	l := &layerWriter{tar: tar.NewWriter(w), made: map[string]bool{}}
	folders := append([]Folder{{Path: "/tmp", Mode: 0o1777}}, i.Folders...)
	for _, f := range folders {
		if err := l.folder(f); err != nil {
			return err
		}
	}
	if err := l.file("/etc/passwd", strings.NewReader(passwd), int64(len(passwd)), 0o644); err != nil {
		return err
	}
	names := make([]string, 0, len(i.Files))
	for name := range i.Files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := l.program(name, i.Files[name]); err != nil {
			return err
		}
	}
	return l.tar.Close()
}

func (l *layerWriter) program(name, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", source, fs.ErrInvalid)
	}
	return l.file(name, f, info.Size(), 0o755)
}

func (l *layerWriter) file(name string, content io.Reader, size, mode int64) error {
	if err := l.parents(name); err != nil {
		return err
	}
	if err := l.tar.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(l.tar, content)
	return err
}

func (l *layerWriter) folder(f Folder) error {
	if f.Path == "/" || f.Path == "." || l.made[f.Path] {
		return nil
	}
	if err := l.parents(f.Path); err != nil {
		return err
	}
	l.made[f.Path] = true
	return l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: strings.TrimPrefix(f.Path, "/") + "/", Mode: f.Mode, Uid: f.UID, Gid: f.GID,
	})
}

func (l *layerWriter) parents(name string) error {
	return l.folder(Folder{Path: path.Dir(name), Mode: 0o755})
}

// created is part of the configuration, whose hash is the image's id.
const created = "1970-01-01T00:00:00Z"

func writeArchive(file string, layer io.ReadSeeker, diffID string, i Image) (err error) {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": created,
		"config": map[string]any{
			"Entrypoint": i.Entrypoint, "User": i.User, "WorkingDir": "/",
			"Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diffID}},
		"history": []any{map[string]any{"created": created, "created_by": "lifeboat tests"}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName, layerName := hex.EncodeToString(sum[:])+".json", diffID+"/layer.tar"
	index, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": []string{i.Reference}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if closed := out.Close(); err == nil {
			err = closed
		}
	}()
	archive := tar.NewWriter(out)
	for _, part := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{layerName, size, layer},
		{configName, int64(len(config)), bytes.NewReader(config)},
		{"manifest.json", int64(len(index)), bytes.NewReader(index)},
	} {
		if err := archive.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if _, err := io.Copy(archive, part.content); err != nil {
			return err
		}
	}
	return archive.Close()
}
