package config

import (
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the documents that are made from the code")

const (
	documentFile = "../../docs/configuration.md"
	tableBegins  = "<!-- The table is made from the code: go test ./internal/config -update -->\n"
	tableEnds    = "<!-- end of the table -->\n"
)

func TestTheDocumentHoldsEveryKeyAsTheCodeHasIt(t *testing.T) {
	table, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile(documentFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(document), tableBegins)
	_, after, ended := strings.Cut(rest, tableEnds)
	if !begun || !ended {
		t.Fatalf("%s lacks the marks of the table", documentFile)
	}
	want := before + tableBegins + "\n" + table + "\n" + tableEnds + after
	if want == string(document) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the code says; go test ./internal/config -update", documentFile)
	}
	if err := os.WriteFile(documentFile, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every section that the document explains exists, and every section of the
// file is explained.
func TestTheDocumentExplainsEverySection(t *testing.T) {
	document, err := os.ReadFile(documentFile)
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for line := range strings.Lines(string(document)) {
		if name, ok := strings.CutPrefix(line, "## `"); ok {
			for _, key := range strings.Split(strings.TrimSuffix(strings.TrimSpace(name), "`"), "`, `") {
				explained[key] = true
			}
		}
	}
	top := reflect.TypeFor[Config]()
	for i := range top.NumField() {
		key := top.Field(i).Tag.Get("yaml")
		if !explained[key] {
			t.Errorf("%s has no chapter on %q", documentFile, key)
		}
		delete(explained, key)
	}
	for key := range explained {
		t.Errorf("%s has a chapter on %q, which is no key", documentFile, key)
	}
}

func TestEveryKeyHasItsRowAndItsMeaning(t *testing.T) {
	table, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"| `schedule.full` | text | `0 */6 * * *` |",
		"| `etcd[].endpoints` | list of text |  |",
		"| `stores[].s3.objectLock.days` | number | `0` |",
		"| `segments.interval` | duration | `2s` |",
		"| `discover` | true or false | `false` |",
	} {
		if !strings.Contains(table, row) {
			t.Errorf("no row that begins with %q in\n%s", row, table)
		}
	}
	for line := range strings.Lines(table) {
		if strings.HasSuffix(strings.TrimSpace(line), "|  |") {
			t.Errorf("a key without a meaning: %s", line)
		}
	}
}
