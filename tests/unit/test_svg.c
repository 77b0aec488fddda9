/* common/svg.c: escaping, and axes whose ticks are round and cover the value. */
#include "common/memory.h"
#include "common/svg.h"
#include "suite.h"

#include <math.h>
#include <string.h>

static void check_text(const char *in, const char *out) {
    ingot_markup markup = {0};
    ingot_markup_text(&markup, in);
    CU_ASSERT_EQUAL(ingot_markup_status(&markup), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(markup.text == NULL ? "" : markup.text, out);
    ingot_markup_free(&markup);
}

static void test_escaping(void) {
    check_text("", "");
    check_text("plain text", "plain text");
    check_text("<b a=\"1\" b='2'>&amp;", "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;amp;");
    check_text("tab\tline\nbell\a", "tab\tline\nbell\xef\xbf\xbd");
    check_text("\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80", "\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80");
    /* A lone continuation byte, a cut sequence, an overlong one, a surrogate, beyond U+10FFFF. */
    check_text("\x80", "\xef\xbf\xbd");
    check_text("a\xe6\xbc", "a\xef\xbf\xbd\xef\xbf\xbd");
    check_text("\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd");
    check_text("\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    check_text("\xf5\x80\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    ingot_markup markup = {0};
    ingot_markup_text_n(&markup, "abcdef", 3);
    ingot_markup_text_n(&markup, "\xe6\xbc\xa2", 2); /* cut by the size, not by the text */
    CU_ASSERT_STRING_EQUAL(markup.text, "abc\xef\xbf\xbd\xef\xbf\xbd");
    ingot_markup_free(&markup);
}

static void test_growth(void) {
    ingot_markup markup = {0};
    for (unsigned i = 0; i < 20000; i++) {
        ingot_markup_add(&markup, "%05u,", i);
    }
    CU_ASSERT_EQUAL(ingot_markup_status(&markup), INGOT_OK);
    CU_ASSERT_EQUAL(markup.size, 120000);
    CU_ASSERT_EQUAL(strlen(markup.text), 120000);
    CU_ASSERT_EQUAL(memcmp(markup.text + 6 * 12345, "12345,", 6), 0);
    ingot_markup_free(&markup);
}

static void test_out_of_memory(void) {
    ingot_markup markup = {0};
    ingot_memory_fail_after(1);
    ingot_markup_add(&markup, "lost");
    ingot_markup_text(&markup, "lost too");
    ingot_memory_fail_after(0);
    ingot_markup_add(&markup, "a failure is not forgotten");
    CU_ASSERT_EQUAL(ingot_markup_status(&markup), INGOT_ERR_NO_MEMORY);
    CU_ASSERT_EQUAL(markup.size, 0);
    ingot_markup_free(&markup);
}

static void test_elements(void) {
    ingot_markup markup = {0};
    const double x[] = {1, 2, NAN, 4, 5}, y[] = {1, 2, 3, 4, INFINITY};
    ingot_svg_begin(&markup, 100, 50, "a < b");
    ingot_svg_rect(&markup, "bar", 1, 2, 3, 4, "\"tip\"");
    ingot_svg_circle(&markup, "dot", 1, 2, 3, NULL);
    ingot_svg_polyline(&markup, "path", x, y, 5);
    ingot_svg_text(&markup, "label", 0, 0, "end", "x & y");
    ingot_svg_end(&markup);
    CU_ASSERT_STRING_EQUAL(
        markup.text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 100 50\" role=\"img\">"
        "<title>a &lt; b</title>\n"
        "<rect class=\"bar\" x=\"1.00\" y=\"2.00\" width=\"3.00\" height=\"4.00\">"
        "<title>&quot;tip&quot;</title></rect>\n"
        "<circle class=\"dot\" cx=\"1.00\" cy=\"2.00\" r=\"3.00\"/>\n"
        "<polyline class=\"path\" points=\"1.00,1.00 2.00,2.00\"/>\n"
        "<polyline class=\"path\" points=\"4.00,4.00\"/>\n"
        "<text class=\"label\" x=\"0.00\" y=\"0.00\" text-anchor=\"end\">x &amp; y</text>\n"
        "</svg>\n");
    ingot_markup_free(&markup);
}

static void test_axis(void) {
    const double highs[] = {1e-7, 0.0301, 0.1, 0.3, 1, 7, 99.5, 12345, 3e12};
    for (size_t i = 0; i < sizeof highs / sizeof *highs; i++) {
        ingot_axis axis;
        ingot_axis_from_zero(&axis, highs[i], 5, 200, 20);
        const unsigned ticks = ingot_axis_tick_count(&axis);
        CU_ASSERT(axis.high >= highs[i] * (1 - 1e-9));
        CU_ASSERT(axis.high < highs[i] + axis.step * (1 + 1e-9));
        CU_ASSERT(ticks >= 3 && ticks <= 7);
        CU_ASSERT_DOUBLE_EQUAL(ingot_axis_at(&axis, 0), 200, 1e-9);
        CU_ASSERT_DOUBLE_EQUAL(ingot_axis_at(&axis, axis.high), 20, 1e-9);
        const double scaled = axis.step * pow(10, axis.decimals);
        CU_ASSERT_DOUBLE_EQUAL(scaled, round(scaled), 1e-6 * scaled);
    }
    ingot_axis axis;
    ingot_axis_from_zero(&axis, NAN, 5, 0, 10);
    CU_ASSERT_DOUBLE_EQUAL(axis.high, 1, 1e-12);
    ingot_axis_from_zero(&axis, 0, 0, 0, 10);
    CU_ASSERT_DOUBLE_EQUAL(axis.high, 1, 1e-12);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"text is escaped", test_escaping},
        {"the text grows", test_growth},
        {"a failed allocation is remembered", test_out_of_memory},
        {"elements", test_elements},
        {"axes", test_axis},
        CU_TEST_INFO_NULL,
    };
    return suite_run("svg", tests);
}
