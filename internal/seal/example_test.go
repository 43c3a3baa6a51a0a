package seal_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/internal/seal"
)

// Sealing a node's files and reading them back: the sums belong in a signed
// manifest, since age does not say who sealed.
func Example() {
	id, _ := age.GenerateX25519Identity()
	recipients, _ := seal.ParseRecipients([]string{id.Recipient().String()})

	var store bytes.Buffer
	w, _ := seal.NewWriter(&store, recipients)
	archive := seal.NewArchiveWriter(w)
	archive.AddFile(seal.Header{Name: "etc/hostname", Mode: 0o644, ModTime: time.Unix(0, 0), Size: 4}, strings.NewReader("cp1\n"))
	if err := archive.Close(); err != nil {
		fmt.Println(err)
	}
	if err := w.Close(); err != nil {
		fmt.Println(err)
	}

	r, err := seal.NewReader(&store, w.Sums(), id)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	files := seal.NewArchiveReader(r, seal.Limits{})
	for {
		h, err := files.Next()
		if err == io.EOF {
			break // only now is what was read whole and authentic
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		data, _ := io.ReadAll(files)
		fmt.Printf("%v %s %q\n", h.Mode, h.Name, data)
	}
	// Output: -rw-r--r-- etc/hostname "cp1\n"
}
