package config

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Reference is a Markdown table of every key, its type, its default and what
// it means, from the same tags that Render writes as comments.
func Reference() (string, error) {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	c := Default()
	c.StateDir = "/var/lib/lifeboat" // of root: the default depends on who asks
	// A list's keys are those of one entry; its length is no default.
	c.Etcd, c.Stores = []Etcd{{}}, []Store{DefaultStore("")}
	if err := refer(&b, reflect.ValueOf(*c), ""); err != nil {
		return "", fmt.Errorf("describe the configuration: %w", err)
	}
	return b.String(), nil
}

func refer(b *strings.Builder, v reflect.Value, path string) error {
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		key, doc := path+field.Tag.Get("yaml"), field.Tag.Get("doc")
		switch {
		case value.Kind() == reflect.Struct:
			fmt.Fprintf(b, "| **`%s`** | section | | %s |\n", key, doc)
			if err := refer(b, value, key+"."); err != nil {
				return err
			}
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Struct:
			fmt.Fprintf(b, "| **`%s`** | list | | %s |\n", key, doc)
			if err := refer(b, value.Index(0), key+"[]."); err != nil {
				return err
			}
		default:
			text, err := yaml.Marshal(value.Interface())
			if err != nil {
				return err
			}
			kind, shown := kindOf(value), strings.TrimSpace(string(text))
			if shown != "" && shown != `""` && shown != "[]" {
				shown = "`" + shown + "`"
			} else {
				shown = ""
			}
			fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", key, kind, shown, doc)
		}
	}
	return nil
}

// kindOf names a value's type for people.
func kindOf(v reflect.Value) string {
	switch v.Interface().(type) {
	case Duration:
		return "duration"
	case []string:
		return "list of text"
	}
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "number"
	}
	return "text"
}
